"""Filings with known faults in them: near-duplicates, boilerplate, evaluation leaks, personal data, broken records.

`plant` puts them into a list of items (rows as `trine edgar parse` writes them) and says where; `check` reads a corpus
built from them and counts what was found. Everything follows from the seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, str | None]
_FUNCTION = "the of and to in for is by as with that on or at be from are not its this which our we was has".split()
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"
PERSONAL: dict[str, tuple[str, ...]] = {
    "email": ("jane.doe@example.com", "ir+press@corp.example.co.uk", "A_B%c@mail.example.org", "x1@sub.example.net"),
    "phone": ("(212) 555-0147", "415-555-2671", "+1 650.555.0199", "+49 30 9018 2049"),
    "ssn": ("078-05-1120", "219-09-9999", "457-55-5462", "123-45-6789"),
    "card": ("4111 1111 1111 1111", "5500-0000-0000-0004", "340000000000009", "6011000000000004"),
    "iban": (
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "FR1420041010050500013M02606",
        "NL91ABNA0417164300",
    ),
}
"""Published examples of each kind (card networks' and ISO 13616's test numbers), none of a person."""
NUMBERS = (
    "Net sales of $4,111,111,111 and (415) 2,310 in thousands; total (212) 555 (398).",
    "Commission file number 001-36743, I.R.S. employer identification no. 94-2404110, zip 95014-2083.",
    "Accession number 0000320193-24-000123; CUSIP 037833100; 4111 1111 1111 1112 units; 1.212-555 per share.",
    "| Revenue | 391,035 | 383,285 | 394,328 |\n| 2024-09-28 | 123 45 6789 | 078 05 1120 | 33-12345 |",
    "Registration No. 333-12345-01 and 2-99779; 10.1234 5678 9012; DE89 plants; periods 2023-2024 212.555.",
)
"""What looks like personal data and is not."""


@dataclass
class Planted:
    """What was planted, by accession."""

    near: dict[str, float] = field(default_factory=dict)
    """Near-duplicates: exact Jaccard index with the original, all at least the threshold."""
    alike: dict[str, float] = field(default_factory=dict)
    """Texts that are alike, but less than the threshold: to be kept."""
    blocks: list[str] = field(default_factory=list)
    leaks: dict[str, str] = field(default_factory=dict)
    personal: list[tuple[str, str]] = field(default_factory=list)
    """(kind, string)."""
    nulls: int = 0
    """Records without text."""


def background(filings: int, seed: int, *, items: int = 2, words: int = 250, companies: int = 20) -> list[Row]:
    """Items of English-like text out of made-up nouns and real function words."""
    draw = random.Random(seed)
    nouns = ["".join(draw.choice(_CONSONANTS) + draw.choice(_VOWELS) for _ in range(3)) for _ in range(4000)]
    rows = []
    for i in range(filings):
        for item in range(items):
            paragraphs = [_sentence(draw, nouns, words // 4) for _ in range(4)]
            rows.append(_row(f"{i % companies:07}", f"bg-{i:06}", str(item + 1), "\n\n".join(paragraphs)))
    return rows


def plant(
    rows: list[Row], seed: int, *, near: int, blocks: int, leaks: int, personal: int, nulls: int, threshold: float = 0.8
) -> tuple[list[Row], list[str], Planted]:
    """`rows` with the faults among them, the texts of an evaluation set (twice as many as leaks), and what was planted.

    Companies need four filings each for the blocks; every fault has rows of its own. Copies follow what they copy.
    """
    draw = random.Random(seed)
    planted, rows = Planted(), [dict(row) for row in rows]
    nouns = ["".join(draw.choice(_CONSONANTS) + draw.choice(_VOWELS) for _ in range(4)) for _ in range(4000)]
    planted.blocks, taken = _plant_blocks(rows, blocks, draw, nouns)
    long = [row for row in rows if len(str(row["text"]).split()) >= 150 and id(row) not in taken]
    chosen = draw.sample(long, leaks + personal + len(NUMBERS) + near)
    exam = [_sentence(draw, nouns, draw.randint(15, 60)) for _ in range(2 * leaks)]
    for row, text in zip(chosen, exam[:leaks], strict=False):
        row["text"] = _insert(str(row["text"]), _disguised(draw, text), draw)
        planted.leaks[_name(row)] = text
    kinds = list(PERSONAL)
    for i, row in enumerate(chosen[leaks : leaks + personal]):
        kind = kinds[i % len(kinds)]
        said = PERSONAL[kind][(i // len(kinds)) % len(PERSONAL[kind])]
        row["text"] = _insert(str(row["text"]), f"Write to {said} for copies.", draw)
        planted.personal.append((kind, said))
    for row, line in zip(chosen[leaks + personal :], NUMBERS, strict=False):
        row["text"] = _insert(str(row["text"]), line, draw)
    extra = []
    for i, row in enumerate(chosen[leaks + personal + len(NUMBERS) :]):
        extra.append(_edited(row, f"near-{i:05}", draw, nouns, lambda j: j >= threshold + 0.02, planted.near, 0.004))
        alike = lambda j: threshold - 0.4 <= j <= threshold - 0.1  # noqa: E731
        extra.append(_edited(row, f"alike-{i:05}", draw, nouns, alike, planted.alike, 0.08))
    extra += [_row("null", f"null-{i:05}", "1", None) for i in range(nulls)]
    planted.nulls = nulls
    draw.shuffle(extra)
    return rows + extra, exam, planted


def write_items(rows: Sequence[Row], path: Path) -> None:
    """The rows as the Parquet file of a parse."""
    names = list(rows[0])
    columns = [pa.array([row[name] for row in rows], pa.string()) for name in names]
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path, row_group_size=1000)


def write_exam(texts: Sequence[str], path: Path) -> None:
    """An evaluation set in JSONL, its texts under `question`."""
    path.write_text("".join(json.dumps({"question": text, "answer": "none of these"}) + "\n" for text in texts))


def check(kept: Sequence[dict[str, Any]], ledger: dict[str, Any], planted: Planted) -> dict[str, Any]:
    """Counts of what was found and what was taken wrongly, from the rows of a corpus and its ledger."""
    names, text = {_name(row) for row in kept}, "\n".join(row["text"] for row in kept)
    found = sum(name not in names for name in planted.near)
    wrong = sum(name not in names for name in planted.alike)
    add_up = all(
        one["documents_in"] == one["documents"] + sum(one["dropped"].values()) + one.get("quarantined", 0)
        for one in ledger["sources"]
    )
    return {
        "near_recall": found / len(planted.near),
        "near_precision": found / (found + wrong) if found else 1.0,
        "blocks_kept_once": sum(text.count(block) == 1 for block in planted.blocks),
        "leaks_found": sum(name not in names for name in planted.leaks),
        "personal_masked": sum(said not in text for _, said in planted.personal),
        "numbers_kept": sum(line in text for line in NUMBERS),
        "quarantined": sum(one.get("quarantined", 0) for one in ledger["sources"]),
        "adds_up": add_up,
    }


def jaccard(one: str, other: str, n: int = 5) -> float:
    """Exact Jaccard index of the sets of `n` words in a row."""
    a, b = ({tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (one.split(), other.split()))
    return len(a & b) / len(a | b)


def _row(cik: str, accession: str, item: str, text: str | None) -> Row:
    fields = {"accession": accession, "cik": cik, "company": f"Company {cik}", "form": "10-K", "period": "2023-12-31"}
    rest = {"filed": "2024-02-15", "source_path": f"{accession}.txt", "part": "I", "item": item, "confidence": "0.9"}
    return {**fields, **rest, "text": text}


def _name(row: dict[str, Any]) -> str:
    return f"{row['accession']}/{row['item']}"


def _sentence(draw: random.Random, nouns: Sequence[str], words: int) -> str:
    said = [draw.choice(_FUNCTION) if draw.random() < 0.4 else draw.choice(nouns) for _ in range(words)]
    return " ".join(said).capitalize() + "."


def _insert(text: str, line: str, draw: random.Random) -> str:
    """`line` as a paragraph of its own between two of `text`."""
    end = "\n\n" if "\n\n" in text else "\n"
    paragraphs = text.split(end)
    paragraphs.insert(draw.randint(0, len(paragraphs)), line)
    return end.join(paragraphs)


def _disguised(draw: random.Random, text: str) -> str:
    """The same words with other capitals and punctuation."""
    return " ".join(
        draw.choice((str, str.upper, str.title))(word) + draw.choice(("", "", ",")) for word in text.split()
    )


def _plant_blocks(
    rows: list[Row], blocks: int, draw: random.Random, nouns: Sequence[str]
) -> tuple[list[str], set[int]]:
    """Each block as a paragraph in four filings of one company; the blocks, and the `id` of the rows that have some."""
    by_company: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_company.setdefault(str(row["cik"]), {}).setdefault(str(row["accession"]), row)
    able = [list(filings.values()) for filings in by_company.values() if len(filings) >= 4]
    made, taken = [], set[int]()
    for i in range(blocks):
        block = _sentence(draw, nouns, 45)
        for row in able[i % len(able)][:4]:
            row["text"] = _insert(str(row["text"]), block, draw)
            taken.add(id(row))
        made.append(block)
    return made, taken


def _edited(
    row: Row,
    accession: str,
    draw: random.Random,
    nouns: Sequence[str],
    wanted: Callable[[float], bool],
    into: dict[str, float],
    rate: float,
) -> Row:
    """A copy under another name with so many words changed that `wanted` holds of its likeness."""
    text = str(row["text"])
    for _ in range(200):
        words = text.split(" ")
        for place in range(len(words)):
            if draw.random() < rate:
                words[place] = draw.choice(nouns)
        other = " ".join(words)
        likeness = jaccard(text, other)
        if wanted(likeness) and likeness < 1:
            break
        rate *= 0.9 if likeness < 0.5 or (likeness < 1 and rate < 0.02) else 1.1
    else:
        raise ValueError(f"no edit of {row['accession']} is as like as wanted")
    made = _row(f"c-{accession}", accession, "1", other)
    into[_name(made)] = likeness
    return made
