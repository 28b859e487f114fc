"""Paragraphs that one company repeats from filing to filing: counted first, then kept once.

Enters: documents with a field for the company and one for the filing. A paragraph counts as the same up to case,
spaces and punctuation, numbers being part of it.
Leaves: documents without the paragraphs that stand in at least so many filings of their company and were read before.

Memory: 9 bytes per repeated paragraph, and one of `_PARTS` parts of the list of all, which lies on disk at 16 bytes per
paragraph until the counts are made.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trine.data.config import BoilerplateConfig
from trine.data.document import Document, Dropped
from trine.data.words import Hashes, mixed

_BLANK_LINES = re.compile(r"(\n[^\S\n]*\n\s*)")
_WRAPPED = 120
"""Characters of the longest line in text that is wrapped."""
_PARTS = 64
_BUFFERED = 1 << 18
_FACTOR = np.uint64(0xD6E8FEB86659FD93)


def paragraphs(text: str) -> list[str]:
    """`text` in paragraphs, each with the line ends that follow it; joined they are the text.

    Blank lines stand between paragraphs. Where lines run on (one is longer than `_WRAPPED`) each line is a paragraph,
    but for the rows of a table, which stay together.
    """
    pieces = _BLANK_LINES.split(text)
    pieces.append("")
    found = list[str]()
    for one, end in zip(pieces[0::2], pieces[1::2], strict=True):
        lines = one.splitlines(keepends=True) if len(one) > _WRAPPED else []
        if len(lines) > 1 and max(map(len, lines)) > _WRAPPED:
            for row, group in groupby(lines, lambda line: line.startswith("|")):
                together = list(group)
                found += ["".join(together)] if row else together
            found[-1] += end
        elif one or end:
            found.append(one + end)
    return found


class ParagraphCount:
    """In how many filings of its company each paragraph stands; the list lies in `folder` until `repeated`."""

    def __init__(self, config: BoilerplateConfig, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._rows, self._held = list[Hashes](), 0
        folder.mkdir(parents=True)

    def add(self, document: Document) -> None:
        """Count the paragraphs of a document that has a company and a filing."""
        filing = document.fields.get(self._config.filing)
        if not filing or not document.fields.get(self._config.company):
            return
        number = int.from_bytes(hashlib.blake2b(filing.encode(), digest_size=8).digest(), "little")
        _, keys = _long_paragraphs(self._config, document)
        self._rows.append(np.stack([keys, np.full(len(keys), number, np.uint64)], axis=1))
        self._held += len(keys)
        if self._held >= _BUFFERED:
            self._flush()

    def repeated(self) -> Hashes:
        """Keys of the paragraphs that stand in at least `filings` filings of a company, in order; removes the list."""
        self._flush()
        found = [self._of_part(path) for path in sorted(self._folder.iterdir())]
        shutil.rmtree(self._folder)
        return np.sort(np.concatenate([np.zeros(0, np.uint64), *found]))

    def _of_part(self, path: Path) -> Hashes:
        pairs = np.unique(np.fromfile(path, np.uint64).reshape(-1, 2), axis=0)
        keys, counts = np.unique(pairs[:, 0], return_counts=True)
        return keys[counts >= self._config.filings]

    def _flush(self) -> None:
        rows = np.concatenate([np.zeros((0, 2), np.uint64), *self._rows])
        parts = rows[:, 0] >> np.uint64(58)
        for part in range(_PARTS):
            if len(chosen := rows[parts == part]):
                with (self._folder / f"{part:02}").open("ab") as file:
                    chosen.tofile(file)
        self._rows, self._held = [], 0


class RepeatedParagraphs:
    """The step that leaves out what `ParagraphCount` found, but for the first time."""

    def __init__(self, config: BoilerplateConfig, repeated: Hashes) -> None:
        self._config, self._repeated = config, repeated
        self._seen = np.zeros(len(repeated), bool)
        self._paragraphs = self._bytes = self._documents = 0

    def __call__(self, document: Document) -> Document | Dropped:
        if not len(self._repeated) or not document.fields.get(self._config.company):
            return document
        pieces, keys = _long_paragraphs(self._config, document)
        places = np.minimum(np.searchsorted(self._repeated, keys), len(self._repeated) - 1)
        drop = set[int]()
        for i in np.flatnonzero(self._repeated[places] == keys):
            if self._seen[places[i]]:
                drop.add(int(pieces[i]))
            self._seen[places[i]] = True
        if not drop:
            return document
        whole = paragraphs(document.text)
        self._documents += 1
        self._paragraphs += len(drop)
        self._bytes += sum(len(whole[piece].encode()) for piece in drop)
        text = "".join(piece for i, piece in enumerate(whole) if i not in drop)
        return document.with_text(text) if text.strip() else Dropped("nothing but repeated paragraphs")

    def figures(self) -> dict[str, int]:
        """What was left out, for the ledger."""
        return {
            "repeated": len(self._repeated),
            "documents": self._documents,
            "paragraphs": self._paragraphs,
            "bytes": self._bytes,
        }


def _long_paragraphs(config: BoilerplateConfig, document: Document) -> tuple[NDArray[np.int64], Hashes]:
    """Which paragraphs of a document are long enough, and their keys: hashes of the company and the words in order."""
    pieces = paragraphs(document.text)
    sizes = [len(piece) for piece in pieces] if document.text.isascii() else [len(piece.encode()) for piece in pieces]
    ends, words = np.cumsum(sizes), document.words
    firsts = np.searchsorted(words.begins, ends - sizes)
    counts = np.diff(np.append(firsts, len(words.hashes)))
    chosen = np.flatnonzero((np.array(sizes) >= config.min_characters) & (counts > 0))
    if not len(chosen):
        return chosen, np.zeros(0, np.uint64)
    said, held = counts > 0, int(counts.max())
    powers = np.multiply.accumulate(np.full(held, _FACTOR, np.uint64))
    places = np.arange(len(words.hashes)) - np.repeat(firsts, counts)
    sums = np.zeros(len(pieces), np.uint64)
    sums[said] = np.add.reduceat(words.hashes * powers[places], firsts[said])
    company = hashlib.blake2b(document.fields[config.company].encode(), digest_size=8).digest()
    return chosen, mixed(sums[chosen] + np.uint64(int.from_bytes(company, "little")))
