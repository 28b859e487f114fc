"""Reading filings: megabytes of HTML per second, numbers kept, furniture removed, items beside edgartools'.

    python bench/edgar.py [--filings DIR] [--rounds N] [--limit N] [--no-peer] [--list] [--json FILE]

DIR (default `$TRINE_DATA/filings`) holds MANIFEST.jsonl, html/ and edgar-crawler/. One process, one core, CPU time.

- `text` and `items`: the 10-K and 10-Q documents, all text, and items with tables; the peer is edgartools' parse_html
  and its text, or its sections, on the same bytes.
- `numbers`: per document, the multiset of numbers that lxml finds in the shown text, less those of what was removed as
  furniture, that stand in the items' text; and the share of all numbers that were removed. The worst document counts.
- `sections`: items that both find with the same boundaries (first and last words, and a length within 5 % or 15 words),
  among all that edgartools finds; each difference with --list.
- `8-K items`, `8-K words`: recorded output of edgar-crawler beside the raw file: the same set of items; of each
  item's words, how many stand in ours.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lxml import etree, html  # pyright: ignore[reportAttributeAccessIssue]
from table import finish

from trine.data.edgar.document import Parsed, parse_document, text_of
from trine.data.edgar.submission import read_submission

REPORTS = ("10-K", "10-Q")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
WORD = re.compile(r"\w+")
INLINE = frozenset("a abbr b big cite code em font i s small span strong sub sup tt u".split())
GOALS = {"text": 30.0, "items": 10.0, "numbers kept": 0.995, "furniture": 0.015, "sections": 0.97}
Row = dict[str, Any]


def documents(folder: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The primary HTML documents with their rows of the manifest."""
    for line in (folder / "MANIFEST.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["path"].startswith("html/"):
            data = (folder / row["path"]).read_bytes()
            yield row, gzip.decompress(data) if row["path"].endswith(".gz") else data


def shown_text(data: bytes) -> str:
    """What lxml sees: text of all elements that are not hidden, a space where an element is not inline."""
    root = html.document_fromstring(data, parser=html.HTMLParser(encoding="utf-8", huge_tree=True))
    parts: list[str] = []
    hidden = 0
    for event, node in etree.iterwalk(root, events=("start", "end", "comment", "pi")):
        tag = node.tag if isinstance(node.tag, str) else ""
        style = (node.get("style") or "").lower().replace(" ", "") if tag else ""
        hides = tag in ("script", "style", "title", "head", "ix:header") or "display:none" in style
        if event == "start":
            hidden += hides
            parts.append("" if tag in INLINE or tag.startswith("ix:") else " ")
            parts.append(node.text if not hidden and node.text else "")
        elif event == "end":
            hidden -= hides
            parts.append("" if tag in INLINE or tag.startswith("ix:") else " ")
        if event != "start" and not hidden:
            parts.append(node.tail or "")
    return "".join(parts)


def numbers(text: str) -> Counter[str]:
    return Counter(one.rstrip(",") for one in NUMBER.findall(text))


def kept_and_taken(data: bytes, parsed: Parsed) -> tuple[float, float, int]:
    """Share of the shown numbers kept besides furniture, share taken as furniture, and how many numbers are shown."""
    shown = numbers(shown_text(data))
    furniture = numbers("\n".join(one.text for one in parsed.removed if "hidden" not in one.kind)) & shown
    ours = numbers("\n".join(one.text for one in parsed.items))
    wanted = shown - furniture
    total = max(1, sum(wanted.values()))
    return sum((wanted & ours).values()) / total, furniture.total() / max(1, shown.total()), shown.total()


def seconds(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def edgartools_sections(data: bytes, form: str) -> dict[str, str]:
    """Key such as `I.1A` → text, as edgartools splits the document."""
    from edgar.documents import HTMLParser, ParserConfig

    document = HTMLParser(ParserConfig(form=form)).parse(data.decode("utf-8", "replace"))
    found = {}
    for section in document.sections.values():
        if section.item:
            part = {"I": "I", "II": "II", "III": "III", "IV": "IV"}.get((section.part or "").upper(), "")
            found[f"{part}.{section.item.upper()}"] = section.text()
    return found


def alike(ours: str, theirs: str) -> str:
    """Empty when two texts of an item have the same boundaries, else what differs."""
    mine, other = WORD.findall(ours.lower()), WORD.findall(theirs.lower())
    if not other:
        return "theirs is empty"
    if abs(len(mine) - len(other)) > max(15, 0.05 * len(other)):
        return f"{len(mine):,} words, theirs {len(other):,}"
    if not (_leads(mine, other) or _leads(other, mine)):
        return "another beginning"
    if not (_leads(mine[::-1], other[::-1]) or _leads(other[::-1], mine[::-1])):
        return "another end"
    return ""


def _leads(one: list[str], other: list[str]) -> bool:
    """Whether most of the first dozen words of `one` stand among the first 60 of `other` (a foot may be there)."""
    first = set(one[:12])
    return len(first & set(other[:60])) >= 0.7 * len(first)


def compare_sections(reports: list[tuple[dict[str, Any], bytes]], listed: bool) -> tuple[int, int, list[str]]:
    """Sections alike, sections that edgartools finds, and the differences."""
    same = total = 0
    differences = []
    for row, data in reports:
        ours = {
            f"{one.part}.{one.item}": one.text for one in parse_document(data, row["form"] or "10-Q").items if one.item
        }
        theirs = edgartools_sections(data, row["form"] or "10-Q")
        for key, text in theirs.items():
            whole = next((one for one in (key, *(f"{p}{key}" for p in ("I", "II", "III", "IV"))) if one in ours), None)
            problem = alike(ours[whole], text) if whole else "not ours"
            total += 1
            same += not problem
            if problem:
                differences.append(f"{Path(row['path']).name} {key}: {problem}")
        differences += [f"{Path(row['path']).name} {key}: ours alone" for key in ours if key not in theirs]
    if listed:
        print(*differences, sep="\n")
    return same, total, differences


def compare_crawler(folder: Path, listed: bool) -> tuple[float, float, int]:
    """8-Ks of edgar-crawler's record: share with the same items, share of its items' words that ours hold."""
    same = 0
    held = wanted = 0
    files = sorted((folder / "edgar-crawler/extracted/8-K").glob("*.json"))
    for path in files:
        record = json.loads(path.read_text())
        raw = next((folder / "edgar-crawler/raw/8-K").glob(f"{path.stem}.*"))
        main = read_submission(raw.read_bytes(), raw.name).main()
        if main is None:
            continue
        ours: dict[str, str] = {}
        for one in parse_document(main.data, "8-K").items:
            if one.item:
                ours[one.item] = ours.get(one.item, "") + " " + one.text
        theirs = {key.removeprefix("item_"): text for key, text in record.items() if key.startswith("item_") and text}
        same += set(ours) == set(theirs)
        if listed and set(ours) != set(theirs):
            print(f"{raw.name}: ours {sorted(ours)}, edgar-crawler {sorted(theirs)}")
        for key, text in theirs.items():
            words = Counter(WORD.findall(text.lower()))
            mine = Counter(WORD.findall(ours.get(key, "").lower()))
            share = (words & mine).total() / max(1, words.total())
            held, wanted = held + (words & mine).total(), wanted + words.total()
            if listed and key in ours and (share < 0.95 or mine.total() > 1.2 * words.total() + 20):
                print(
                    f"{raw.name} {key}: {mine.total()} words, edgar-crawler {words.total()}, {share:.2f} of them ours"
                )
    return same / max(1, len(files)), held / max(1, wanted), len(files)


def row_of(name: str, unit: str, ours: float, peer: float | None, goal: float, ratio: float) -> Row:
    return {"name": f"edgar/{name}", "unit": unit, "ours": ours, "peer": peer, "ratio": round(ratio, 3), "goal": goal}


def speed_rows(reports: list[tuple[dict[str, Any], bytes]], rounds: int, peer: bool) -> list[Row]:
    size = sum(len(data) for _, data in reports) / 1e6
    text = seconds(lambda: [text_of(data) for _, data in reports], rounds)
    items = seconds(lambda: [parse_document(data, row["form"] or "10-Q") for row, data in reports], rounds)
    theirs: list[float | None] = [None, None]
    if peer:
        from edgar.documents import parse_html

        begun = time.process_time()
        for _, data in reports:
            parse_html(data.decode("utf-8", "replace")).text()
        theirs[0] = round(size / (time.process_time() - begun), 2)
        begun = time.process_time()
        for row, data in reports:
            edgartools_sections(data, row["form"] or "10-Q")
        theirs[1] = round(size / (time.process_time() - begun), 2)
    return [
        row_of("text", "MB/s", round(size / text, 1), theirs[0], 1.0, size / text / GOALS["text"]),
        row_of("items", "MB/s", round(size / items, 1), theirs[1], 1.0, size / items / GOALS["items"]),
    ]


def quality_rows(every: list[tuple[dict[str, Any], bytes]], listed: bool) -> list[Row]:
    found = []
    for row, data in every:
        kept, taken, count = kept_and_taken(data, parse_document(data, row["form"] or "10-Q"))
        found.append((kept, taken, Path(row["path"]).name))
        if listed:
            print(f"{Path(row['path']).name}: {kept:.4f} kept, {taken:.4f} furniture, of {count:,} numbers")
    kept, taken = min(one[0] for one in found), max(one[1] for one in found)
    return [
        row_of("numbers kept", "share, worst", round(kept, 4), None, 1.0, kept / GOALS["numbers kept"]),
        row_of("furniture", "share, worst", round(taken, 4), None, 1.0, GOALS["furniture"] / max(taken, 1e-9)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filings", type=Path, default=Path(os.environ.get("TRINE_DATA", ".")) / "filings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=1000, help="documents of each kind")
    parser.add_argument("--no-peer", action="store_true", help="without edgartools, which takes minutes")
    parser.add_argument("--list", action="store_true", help="each document's figures and each difference")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    here = Path(__file__).resolve().parent  # edgartools' package has this file's name
    sys.path[:] = [one for one in sys.path if Path(one or ".").resolve() != here]
    every = list(documents(options.filings))
    reports = [one for one in every if one[0]["path"].split("/")[1] in REPORTS][: options.limit]
    rows = speed_rows(reports, options.rounds, not options.no_peer)
    rows += quality_rows(every[: options.limit], options.list)
    if not options.no_peer:
        same, total, _ = compare_sections(reports, options.list)
        rows.append(
            row_of("sections", f"share of {total}", round(same / total, 4), None, 1.0, same / total / GOALS["sections"])
        )
    items, words, files = compare_crawler(options.filings, options.list)
    rows.append(row_of("8-K items", f"share of {files}", round(items, 4), None, 0.0, items))
    rows.append(row_of("8-K words", "share", round(words, 4), None, 0.0, words))
    print(
        f"{'row':20} {'unit':16} {'trine':>8} {'edgartools':>10} {'ratio':>7} {'goal':>5}"
        f"   load {os.getloadavg()[0]:.1f}"
    )
    for row in rows:
        print(
            f"{row['name']:20} {row['unit']:16} {row['ours']:8} "
            f"{row['peer'] or '':>10} {row['ratio']:7} {row['goal']:5}"
        )
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
