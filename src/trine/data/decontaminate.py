"""Texts of evaluation sets found in documents, by words in a row that both have.

Every `words` words in a row (13 by default, as in Brown et al. 2020, appendix C) of every text of every evaluation set
are kept as a 64-bit hash; a document that has one of them holds a leak. Words are compared in lower case without
punctuation. A text of fewer words is too short to be told from chance, and is counted and left alone.

Memory: 10 bytes per n-gram of the evaluation sets, and 16 bytes of a first look-up table; documents stream.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trine.data.config import DecontaminateConfig, EvaluationSet
from trine.data.document import Document, Dropped
from trine.data.sources import BATCH_ROWS, BadFile, numbered_lines, open_packed, reading
from trine.data.words import ngrams, words_of
from trine.errors import BadInput

_ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".md")
_SHOWN = 300


def evaluation_texts(one: EvaluationSet) -> Iterator[str]:
    """Every text of an evaluation set: what stands under `fields` at any depth of a record, or everywhere. Raises
    BadInput where there is no file or no text."""
    found = False
    for path in _files(one):
        with reading(path):
            for record in _records(path):
                for text in _strings(record, one.fields):
                    found = True
                    yield text
    if not found:
        named = f" under {', '.join(one.fields)}" if one.fields else ""
        raise BadInput(f"{one.path}: evaluation set '{one.name}' has no text{named}")


class Decontamination:
    """The step that finds texts of evaluation sets in documents to be trained on."""

    def __init__(self, config: DecontaminateConfig) -> None:
        self._config, self._names = config, [one.name for one in config.sets]
        self._texts, self._short = Counter[str](), Counter[str]()
        self._hits, self._passages = Counter[str](), Counter[str]()
        hashes, owners = list[NDArray[np.uint64]](), list[NDArray[np.uint16]]()
        for number, one in enumerate(config.sets):
            for text in evaluation_texts(one):
                grams = np.unique(ngrams(words_of(text).hashes, config.words))
                self._texts[one.name] += 1
                self._short[one.name] += not len(grams)
                hashes.append(grams)
                owners.append(np.full(len(grams), number, np.uint16))
        self._grams, firsts = np.unique(np.concatenate(hashes), return_index=True)
        self._owners = np.concatenate(owners)[firsts]
        self._shift = np.uint64(64 - max(10, len(self._grams).bit_length() + 4))
        self._maybe = np.zeros(1 << (64 - int(self._shift)), bool)
        self._maybe[self._grams >> self._shift] = True

    def __call__(self, document: Document) -> Document | Dropped:
        words, size = document.words, self._config.words
        grams = ngrams(words.hashes, size)
        places = np.flatnonzero(self._maybe[grams >> self._shift])
        if len(places):
            ranks = np.minimum(np.searchsorted(self._grams, grams[places]), len(self._grams) - 1)
            same = self._grams[ranks] == grams[places]
            places, ranks = places[same], ranks[same]
            if len(places):
                return self._found(document, words.begins[places], words.ends[places + size - 1], ranks)
        return document

    def figures(self) -> dict[str, Any]:
        """Per evaluation set: its texts, those too short, documents with a leak, passages cut; for the ledger."""
        return {
            name: {
                "texts": self._texts[name],
                "too_short": self._short[name],
                "documents": self._hits[name],
                "passages_cut": self._passages[name],
            }
            for name in self._names
        }

    def _found(
        self, document: Document, begins: NDArray[np.int64], ends: NDArray[np.int64], ranks: NDArray[np.int64]
    ) -> Document | Dropped:
        names = [self._names[owner] for owner in self._owners[ranks]]
        self._hits.update(set(names))
        data = document.text.encode()
        if self._config.action == "drop" or document.messages is not None:
            said = data[begins[0] : ends[0]].decode()
            return Dropped(f"holds text of the evaluation set {names[0]}", said[:_SHOWN])
        kept, end = list[bytes](), 0
        for begin, stop, name in _passages(data, begins, ends, names):
            self._passages[name] += 1
            kept.append(data[end:begin])
            end = stop
        text = b"".join([*kept, data[end:]]).decode()
        if not text.strip():
            return Dropped(f"nothing but text of the evaluation set {names[0]}")
        return document.with_text(text)


def _passages(
    data: bytes, begins: NDArray[np.int64], ends: NDArray[np.int64], names: Sequence[str]
) -> Iterator[tuple[int, int, str]]:
    """(begin, end, set) of the whole lines that the finds stand in, those that touch joined."""
    joined: list[tuple[int, int, str]] = []
    for begin, end, name in zip(begins.tolist(), ends.tolist(), names, strict=True):
        if joined and begin < joined[-1][1]:
            begin, _, name = joined.pop()
        stop = data.find(b"\n", end) + 1 or len(data)
        joined.append((data.rfind(b"\n", 0, begin + 1) + 1 if begin else 0, stop, name))
    yield from joined


def _files(one: EvaluationSet) -> list[Path]:
    given = Path(one.path).expanduser()
    if given.is_dir():
        files = sorted(path for path in given.rglob("*") if path.is_file() and _ending(path))
    elif given.is_file():
        files = [given]
        if not _ending(given):
            raise BadInput(f"{given}: evaluation set '{one.name}' is none of {' '.join(_ENDINGS)} (also .gz, .zst)")
    else:
        raise BadInput(f"{given}: evaluation set '{one.name}': no such file or folder")
    if not files:
        raise BadInput(f"{given}: evaluation set '{one.name}' has no file of {' '.join(_ENDINGS)} in it")
    return files


def _ending(path: Path) -> tuple[str, str] | None:
    """(format, compression) by a file's name."""
    packed = path.suffix.lower() if path.suffix.lower() in (".gz", ".zst") else ""
    ending = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    return (ending, packed) if ending in _ENDINGS else None


def _records(path: Path) -> Iterator[Any]:
    """Lines, rows or the one document of a file, as JSON values."""
    ending, packed = _ending(path) or ("", "")
    if ending == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
            yield from batch.to_pylist()
        return
    with open_packed(path, packed) as stream:
        try:
            match ending:
                case ".jsonl":
                    for _, line in numbered_lines(path, stream, 1 << 28):
                        if line.strip():
                            yield json.loads(line)
                case ".json":
                    yield json.loads(stream.read().decode("utf-8-sig"))
                case ".csv":
                    yield from csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""))
                case _:
                    yield stream.read().decode("utf-8-sig")
        except (ValueError, csv.Error, RecursionError) as error:
            raise BadFile(f"{path}: an evaluation set that cannot be read ({error})") from None


def _strings(value: Any, fields: Sequence[str], wanted: bool = False) -> Iterator[str]:
    """Strings in a JSON value: those under a key of `fields` at any depth; all without fields, or in a bare text."""
    if isinstance(value, str):
        if wanted or not fields:
            yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from _strings(one, fields, wanted or key in fields)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one, fields, wanted)
