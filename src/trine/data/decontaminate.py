"""Texts of evaluation sets found in documents, by words in a row that both have.

Every `words` words in a row (13 by default, as in Brown et al. 2020, appendix C) of every text of every evaluation set
are kept as a 64-bit hash; a document that has one of them holds a leak. Words are compared in lower case without
punctuation. A text of fewer words is too short to be told from chance, and is counted and left alone.

Evaluation sets made of filings hold phrases that all filings hold ("management's discussion and analysis of financial
condition and results of operations"). As there, words in a row that stand in more than ten training documents are
therefore no leak by themselves, counted in a reading of its own; here they are one still where a document holds most
(`_WHOLE`) of an evaluation text of some length (`_LONG` n-grams), so that a text leaked many times is found.

Memory: 16 bytes per n-gram of the evaluation sets, and 16 to 32 of a first look-up table; documents stream.
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
_BATCH = 1 << 20
_WHOLE, _LONG = 0.8, 13


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


class EvaluationGrams:
    """The n-grams of evaluation sets: hashes in order, whose each is, and in how many training documents it stands."""

    def __init__(self, config: DecontaminateConfig) -> None:
        self.names = [one.name for one in config.sets]
        self.texts, self.short = Counter[str](), Counter[str]()
        self.set_of_text: list[int] = []
        self.words = config.words
        hashes, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)]
        for number, one in enumerate(config.sets):
            for texts in _batches(evaluation_texts(one)):
                grams, places = _grams(texts, config.words)
                self.texts[one.name] += len(texts)
                self.short[one.name] += len(texts) - len(np.unique(places))
                hashes.append(grams)
                owners.append((places + len(self.set_of_text)).astype(np.uint32))
                self.set_of_text += [number] * len(texts)
        self.hashes, firsts = np.unique(np.concatenate(hashes), return_index=True)
        self.owners = np.concatenate(owners)[firsts]
        self.sizes = np.bincount(self.owners, minlength=len(self.set_of_text))
        self.documents = np.zeros(len(self.hashes), np.uint32)
        self._shift = np.uint64(64 - max(10, len(self.hashes).bit_length() + 4))
        self._maybe = np.zeros(1 << (64 - int(self._shift)), bool)
        self._maybe[self.hashes >> self._shift] = True

    def find(self, document: Document) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(first words of the n-grams of a document that are here, which ones they are)."""
        grams = ngrams(document.words.hashes, self.words)
        places = np.flatnonzero(self._maybe[grams >> self._shift])
        if not len(places) or not len(self.hashes):
            return places[:0], places[:0]
        ranks = np.minimum(np.searchsorted(self.hashes, grams[places]), len(self.hashes) - 1)
        same = self.hashes[ranks] == grams[places]
        return places[same], ranks[same]

    def count(self, document: Document) -> None:
        """Count a training document for each n-gram in it."""
        self.documents[np.unique(self.find(document)[1])] += 1


class Decontamination:
    """The step that finds texts of evaluation sets in documents to be trained on."""

    def __init__(self, config: DecontaminateConfig, grams: EvaluationGrams) -> None:
        self._config, self._grams = config, grams
        self._hits, self._passages = Counter[str](), Counter[str]()
        self._common = np.zeros(len(grams.hashes), bool)
        if config.common_in is not None:
            self._common = grams.documents > config.common_in

    def __call__(self, document: Document) -> Document | Dropped:
        places, ranks = self._grams.find(document)
        if not len(places):
            return document
        leak = ~self._common[ranks] | np.isin(self._grams.owners[ranks], self._whole(ranks))
        if not leak.any():
            return document
        places, ranks = places[leak], ranks[leak]
        words = document.words
        return self._found(document, words.begins[places], words.ends[places + self._config.words - 1], ranks)

    def figures(self) -> dict[str, Any]:
        """Per evaluation set: its texts, those too short, documents with a leak, passages cut; and the n-grams that
        are common."""
        grams = self._grams
        sets = {
            name: {
                "texts": grams.texts[name],
                "too_short": grams.short[name],
                "documents": self._hits[name],
                "passages_cut": self._passages[name],
            }
            for name in grams.names
        }
        return sets | {"ngrams": len(grams.hashes), "common": int(self._common.sum())}

    def _whole(self, ranks: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The longer texts of which most n-grams are among `ranks`."""
        texts, counts = np.unique(self._grams.owners[np.unique(ranks)], return_counts=True)
        sizes = self._grams.sizes[texts]
        return texts[(sizes >= _LONG) & (counts >= _WHOLE * sizes)]

    def _found(
        self, document: Document, begins: NDArray[np.int64], ends: NDArray[np.int64], ranks: NDArray[np.int64]
    ) -> Document | Dropped:
        grams = self._grams
        names = [grams.names[grams.set_of_text[owner]] for owner in grams.owners[ranks]]
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


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Texts in lists of about a megabyte."""
    batch, size = list[str](), 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _grams(texts: Sequence[str], n: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """N-grams within each of `texts`, and the text that each is of."""
    ends = np.cumsum([len(text.encode()) + 1 for text in texts])
    words = words_of("\n".join(texts))
    owners = np.searchsorted(ends, words.begins, side="right")
    grams = ngrams(words.hashes, n)
    within = owners[: len(grams)] == owners[len(owners) - len(grams) :]
    return grams[within], owners[: len(grams)][within]


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
