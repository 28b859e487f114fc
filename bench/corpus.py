"""Cleaning a corpus: what it finds of planted faults, how fast it is beside its peers, and what memory it takes.

    python bench/corpus.py [--row planted|near|build|memory] [--megabytes N] [--rounds N] [--json FILE]

planted: 200 near-duplicates, 50 blocks of boilerplate, 30 texts of an evaluation set and 40 strings of personal data
among the items of real filings ($TRINE_DATA/filings/edgar-crawler; made-up text without it): all but five hundredths of
the near-duplicates and all of the rest must be found, and the totals add up. Precision is the share of the dropped
near-duplicates, natural ones included, whose exact Jaccard index with the text they repeat is at least the threshold.
near: megabytes of text per second of CPU time through our near-duplicate step; peers are datatrove's signatures (its
shingles and MinHash, 14 buckets of 8, whose own tokenizer needs spaCy: it gets `str.split`) and rensa's own
deduplicator on shingles of text (128 permutations).
build: megabytes of HTML ($TRINE_DATA/filings/html; text of items without it) per second of CPU time through parsing,
corpus with every step on, and packing. memory: the most a process held building 4 and 8 times `--megabytes` of text.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from planted import PERSONAL, Row, background, check, plant, write_exam, write_items
from table import finish

from trine.data.config import (
    BoilerplateConfig,
    CorpusConfig,
    DecontaminateConfig,
    EvaluationSet,
    FilingsConfig,
    NearDuplicatesConfig,
    PackConfig,
    QualityConfig,
    SourceConfig,
    TokenizerConfig,
)
from trine.data.corpus import build_corpus, read_rows
from trine.data.document import Document
from trine.data.edgar.document import parse_document
from trine.data.near import NearDuplicateStep
from trine.data.packing import pack_corpus
from trine.data.tokenizer import train_tokenizer

NEAR, BLOCKS, LEAKS, STRINGS, NULLS = 200, 50, 30, 40, 20
THRESHOLD = 0.8


def real_rows() -> list[Row]:
    """Items of real filings, by way of a corpus without any cleaning; made-up ones where there are none."""
    folder = Path(os.environ.get("TRINE_DATA", "")) / "filings" / "edgar-crawler" / "extracted"
    if not folder.is_dir():
        return background(600, 1)
    with tempfile.TemporaryDirectory() as name:
        source = SourceConfig(name="f", path=str(folder), filings=FilingsConfig())
        build_corpus(CorpusConfig(sources=(source,), dedup="none"), Path(name) / "raw")
        rows = [row for rows in read_rows(Path(name) / "raw", "train") for row in rows]
    names = ("accession", "cik", "company", "form", "period", "filed", "part", "item", "text")
    return [{key: row[key] for key in names} | {"source_path": row["path"], "confidence": "1.0"} for row in rows]


def everything(items: Path, exam: Path) -> CorpusConfig:
    """Every step on."""
    sets = (EvaluationSet(name="exam", path=str(exam), fields=("question",)),)
    return CorpusConfig(
        sources=(SourceConfig(name="filings", path=str(items), filings=FilingsConfig()),),
        near_duplicates=NearDuplicatesConfig(threshold=THRESHOLD),
        boilerplate=BoilerplateConfig(),
        quality=QualityConfig(),
        decontaminate=DecontaminateConfig(sets=sets),
        personal="mask",
        write_dropped=True,
    )


def planted_row(folder: Path) -> dict[str, Any]:
    """What is found of the full counts of planted faults."""
    rows = [row for row in real_rows() if row["text"]]
    rows, exam, planted = plant(
        rows, 7, near=NEAR, blocks=BLOCKS, leaks=LEAKS, personal=STRINGS, nulls=NULLS, threshold=THRESHOLD
    )
    write_items(rows, folder / "items.parquet")
    write_exam(exam, folder / "exam.jsonl")
    ledger = build_corpus(everything(folder / "items.parquet", folder / "exam.jsonl"), folder / "out")
    kept = [row for some in read_rows(folder / "out", "train") for row in some]
    found = check(kept, ledger, planted)
    texts = {f"{folder / 'items.parquet'}#{i}": str(row["text"]) for i, row in enumerate(rows)}
    repeats = pq.read_table(folder / "out" / "dropped.parquet").to_pylist()
    pairs = [(one["text"], texts[one["detail"][3:]]) for one in repeats if one["reason"] == "near-duplicate"]
    exact = [_exact(*pair) for pair in pairs]
    whole = (BLOCKS, LEAKS, STRINGS, NULLS, True)
    rest = [found[key] for key in ("blocks_kept_once", "leaks_found", "personal_masked", "quarantined", "adds_up")]
    passed = found["near_recall"] >= 0.95 and tuple(rest) == whole
    return {
        "name": "corpus/planted",
        "unit": "found",
        "ratio": float(passed),
        "goal": 1.0,
        **found,
        "near_dropped": len(exact),
        "precision_exact": round(sum(j >= THRESHOLD for j in exact) / len(exact), 4),
        "precision_within_0.05": round(sum(j >= THRESHOLD - 0.05 for j in exact) / len(exact), 4),
        "documents_in": ledger["sources"][0]["documents_in"],
        "documents": ledger["sources"][0]["documents"],
        "dropped": ledger["sources"][0]["dropped"],
    }


def _exact(one: str, other: str) -> float:
    """Exact Jaccard index of the sets of five words in a row, in lower case without punctuation."""
    sets = []
    for text in (one, other):
        words = re.findall(r"[^\W_]+", text.lower())
        sets.append({tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def near_rows(texts: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Speed of near-duplicate search beside two peers."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    ways: dict[str, Callable[[Sequence[str]], int]] = {"ours": _ours, "datatrove": _datatrove, "rensa": _rensa}
    times: dict[str, list[float]] = {name: [] for name in ways}
    dropped = {}
    for turn in range(-1, rounds):  # the first turn warms caches up
        for name, way in ways.items():
            started = time.process_time()
            dropped[name] = way(texts)
            if turn >= 0:
                times[name].append(time.process_time() - started)
    speed = {name: size / statistics.median(taken) for name, taken in times.items()}
    return [
        {
            "name": f"corpus/near-{peer}",
            "unit": "MB/s",
            "ours": round(speed["ours"], 2),
            "peer": round(speed[peer], 2),
            "ratio": round(speed["ours"] / speed[peer], 3),
            "goal": 1.0,
            "dropped": {"ours": dropped["ours"], "peer": dropped[peer]},
        }
        for peer in ("datatrove", "rensa")
    ]


def _ours(texts: Sequence[str]) -> int:
    step = NearDuplicateStep(NearDuplicatesConfig(threshold=THRESHOLD), named=False)
    return sum(not isinstance(step(Document(text, "")), Document) for text in texts)


def _datatrove(texts: Sequence[str]) -> int:
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Split(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    with tempfile.TemporaryDirectory() as name:
        step = MinhashDedupSignature(name, MinhashConfig(), language=Split())  # pyright: ignore[reportArgumentType]
        seen, dropped = set[tuple[int, ...]](), 0
        for text in texts:
            shingles = step.get_shingles(text)
            if shingles.size:
                bands = [(i, *band) for i, band in enumerate(step.get_signature(shingles))]
                dropped += any(band in seen for band in bands)
                seen.update(bands)
    return dropped


def _rensa(texts: Sequence[str]) -> int:
    import rensa

    found = rensa.RMinHashDeduplicator(THRESHOLD, 128, True, num_bands=16)  # pyright: ignore[reportAttributeAccessIssue]
    dropped = 0
    for i, text in enumerate(texts):
        words = re.findall(r"\w+", text.lower())
        sketch = rensa.RMinHash(128, 42)  # pyright: ignore[reportAttributeAccessIssue]
        sketch.update([" ".join(words[j : j + 5]) for j in range(max(1, len(words) - 4))])
        dropped += not found.add(str(i), sketch)
    return dropped


def parsed_rows() -> tuple[list[Row], int, float]:
    """Items of the HTML filings of $TRINE_DATA (or made-up ones), bytes of HTML, and seconds of parsing them."""
    rows, size, seconds = list[Row](), 0, 0.0
    for path in sorted((Path(os.environ.get("TRINE_DATA", "")) / "filings" / "html").glob("*/*.htm*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        started = time.process_time()
        items = parse_document(data, path.parent.name).items
        seconds += time.process_time() - started
        size += len(data)
        fields = {"accession": path.name, "cik": path.name[:4], "company": path.name, "form": path.parent.name}
        rest = {"period": "2024-12-31", "filed": "2025-02-01", "source_path": path.name, "confidence": "1.0"}
        for one in items:
            rows.append({**fields, **rest, "part": one.part, "item": one.item, "text": one.text})
    return (rows, size, seconds) if rows else (background(600, 1), 0, 0.0)


def build_rows(folder: Path, megabytes: int, rounds: int) -> list[dict[str, Any]]:
    """Speed of the whole build."""
    rows, html, parsing = parsed_rows()
    size, copies = _inputs(folder, megabytes, rows)
    config = everything(folder / "items.parquet", folder / "exam.jsonl")
    cleaning, packing = [], []
    for turn in range(rounds):
        out = folder / f"round-{turn}"
        started = time.process_time()
        build_corpus(config, out / "corpus")
        cleaning.append(time.process_time() - started)
        if not turn:
            train_tokenizer(TokenizerConfig(sample_bytes=10_000_000), out / "corpus", folder / "tokenizer")
        started = time.process_time()
        pack_corpus(PackConfig(), out / "corpus", folder / "tokenizer", out / "tokens")
        packing.append(time.process_time() - started)
    clean, pack = statistics.median(cleaning), statistics.median(packing)
    seconds = {"parse": parsing * copies, "clean": clean, "pack": pack}
    speed = (html * copies or size) / 1e6 / sum(seconds.values())
    goal = 8 if html else 1  # an eighth of a filing's HTML is text
    return [
        {
            "name": "corpus/build",
            "unit": "MB/s of HTML" if html else "MB/s of text",
            "ours": round(speed, 2),
            "ratio": round(speed / goal, 3),
            "goal": 1.0,
            "megabytes_of_text": round(size / 1e6, 1),
            "seconds": {name: round(taken, 2) for name, taken in seconds.items()},
        }
    ]


def _inputs(folder: Path, megabytes: int, rows: Sequence[Row]) -> tuple[int, int]:
    """Write items of about so many megabytes, companies and words made distinct, and an evaluation set; their bytes,
    and how many times `rows` are in them."""
    size = repeat = 0
    items: list[Row] = []
    while size < megabytes * 1e6:
        for row in rows:
            text = str(row["text"]).replace(" the ", f" the {repeat} ") if repeat else str(row["text"])
            items.append({**row, "cik": f"{row['cik']}-{repeat}", "text": text})
            size += len(text.encode())
        repeat += 1
    write_items(items, folder / "items.parquet")
    write_exam([f"question {i} " + " ".join(PERSONAL["email"]) * 4 for i in range(1000)], folder / "exam.jsonl")
    return size, repeat


def memory_row(megabytes: int) -> dict[str, Any]:
    """The most memory of a process that cleans 4 and 8 times `megabytes`."""
    peaks = []
    for factor in (4, 8):
        with tempfile.TemporaryDirectory() as name:
            size, _ = _inputs(Path(name), factor * megabytes, real_rows())
            process = get_context("spawn").Process(target=_build_and_tell, args=(Path(name),))
            process.start()
            process.join()
            peaks.append((size, json.loads((Path(name) / "peak.json").read_text())))
    (small, before), (large, after) = peaks
    growth = (after - before) / (large - small)
    return {
        "name": "corpus/memory",
        "unit": "bytes held per byte of text",
        "peak_bytes": [before, after],
        "text_bytes": [small, large],
        "ours": round(growth, 3),
        "ratio": round(0.5 / max(growth, 0.01), 3),
        "goal": 1.0,
    }


def _build_and_tell(folder: Path) -> None:
    build_corpus(everything(folder / "items.parquet", folder / "exam.jsonl"), folder / "out")
    status = Path("/proc/self/status").read_text()  # rusage would count what the parent held when it began this process
    (folder / "peak.json").write_text(str(int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=("planted", "near", "build", "memory"), action="append")
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen = options.row or ["planted", "near", "build", "memory"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        if "planted" in chosen:
            rows.append(planted_row(Path(name)))
        if "near" in chosen:
            rows += near_rows([str(row["text"]) for row in real_rows()], options.rounds)
        if "build" in chosen:
            (Path(name) / "build").mkdir()
            rows += build_rows(Path(name) / "build", options.megabytes, options.rounds)
    if "memory" in chosen:
        rows.append(memory_row(options.megabytes))
    for row in rows:
        print(json.dumps(row))
    return finish(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
