"""Near-duplicates: is a text, up to a few words, one that was read before?

Two texts are as alike as their sets of shingles (`SHINGLE` words in a row): the Jaccard index, common over all. MinHash
(Broder 1997) estimates it from `PERMUTATIONS` minima per text, made by rensa's R-MinHash, with a standard error of
sqrt(J (1 - J) / 128): 0.035 at 0.8. Of each minimum one byte is kept (b-bit MinHash; Li and König 2010), and the chance
that others agree, 1/256, is taken out of the estimate. A text is a near-duplicate when its estimate is not below the
threshold by more than one standard error: at 0.8, texts 0.85 alike are found with P = 0.99, those 0.8 alike with 0.84,
and texts 0.7 alike are taken for near-duplicates with P = 0.05.

Texts that may be alike are found by locality-sensitive hashing: the minima are cut into bands, and texts agreeing in a
whole band are compared. The first text in reading order is the one kept; later ones are compared with kept texts alone,
so a chain of small changes does not pull in texts that differ much.

Memory: 128 bytes of minima and 4 bytes per band in a table that is a quarter to half full; at the default threshold,
of 21 bands, 300 to 530 bytes per kept text (and half as much again for a moment when the arrays grow).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]  (compiled, without types)

from trine.data.config import NearDuplicatesConfig
from trine.data.document import Document, Dropped
from trine.data.words import Hashes, mixed, ngrams

SHINGLE = 5
PERMUTATIONS = 128
_SEED = 42
_SURE = 0.99
"""Two texts exactly as alike as the threshold are compared with at least this probability."""
_PROBES = 16
_FIRST_SLOTS = 1 << 12
_CHANCE = 1 / 256
_Slots = NDArray[np.int64]


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows of each): as many rows as leave texts at `threshold` compared with probability `_SURE`.

    At 0.8: 21 bands of 6, P = 1 - (1 - 0.8^6)^21 = 0.998; texts at 0.5 are compared with P = 0.28 and told apart by
    the estimate.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _SURE:
            return bands, rows
    return PERMUTATIONS, 1


def signature(hashes: Hashes) -> NDArray[np.uint8] | None:
    """The lowest byte of each of the minima [PERMUTATIONS] of a text with these words; None for no words."""
    if not len(hashes):
        return None
    shingles = ngrams(hashes, min(SHINGLE, len(hashes)))
    offsets = np.array([0, len(shingles)], np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, PERMUTATIONS, _SEED)
    return np.array(matrix.to_rows()[0], np.uint32).astype(np.uint8)


class NearDuplicates:
    """The texts kept so far, by number in order, and the search for one that a new text nearly repeats."""

    def __init__(self, threshold: float) -> None:
        self._least = threshold - math.sqrt(threshold * (1 - threshold) / PERMUTATIONS)
        self._bands, self._rows = self.shape = bands_for(threshold)
        self._odd = mixed(np.arange(self._rows, dtype=np.uint64) + np.uint64(1)) | np.uint64(1)
        self._signatures = np.zeros((256, PERMUTATIONS), np.uint8)
        self._table = np.zeros(_FIRST_SLOTS, np.uint32)
        self._used = self.kept = 0

    def first(self, found: NDArray[np.uint8]) -> int | None:
        """The number of the kept text most like the one with signature `found` (the earliest of several), where it is
        as like as the threshold asks; else None, and the text is kept from now on."""
        slots = self._slots(found[None])[0]
        entries = self._table[slots]
        reached = np.logical_and.accumulate(entries != 0, axis=1)
        others = np.unique(entries[reached]).astype(np.int64) - 1
        if len(others):
            alike = _likeness(self._signatures[others], found)
            best = int(np.argmax(alike))
            if alike[best] >= self._least:
                return int(others[best])
        self._keep(found, slots, entries)
        return None

    def _keep(self, found: NDArray[np.uint8], slots: _Slots, entries: NDArray[np.uint32]) -> None:
        if self.kept == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.zeros_like(self._signatures[: self.kept // 2])])
        self._signatures[self.kept] = found
        self.kept += 1
        free = entries == 0
        some = free.any(axis=1)
        places = np.unique(slots[some, np.argmax(free[some], axis=1)])
        self._table[places] = self.kept
        self._used += len(places)
        if 2 * self._used > len(self._table):
            self._grow()

    def _slots(self, signatures: NDArray[np.uint8]) -> _Slots:
        """Where each band of each text is looked for [texts, bands, probes]: a first place, then steps of its own."""
        rows = signatures[:, : self._bands * self._rows].reshape(-1, self._bands, self._rows).astype(np.uint64)
        keys = mixed((rows * self._odd).sum(axis=2, dtype=np.uint64) + np.arange(self._bands, dtype=np.uint64))
        steps = (keys >> np.uint64(32)) | np.uint64(1)
        probes = keys[:, :, None] + steps[:, :, None] * np.arange(_PROBES, dtype=np.uint64)
        return (probes & np.uint64(len(self._table) - 1)).astype(np.int64)

    def _grow(self) -> None:
        """A table of twice the size, filled again from the signatures in order, some thousands of texts at a time."""
        self._table = np.zeros(2 * len(self._table), np.uint32)
        for begin in range(0, self.kept, 4096):
            signatures = self._signatures[begin : min(begin + 4096, self.kept)]
            slots = self._slots(signatures).reshape(-1, _PROBES)
            numbers = np.repeat(np.arange(begin, begin + len(signatures), dtype=np.uint32) + 1, self._bands)
            for probe in range(_PROBES):
                free = np.flatnonzero(self._table[slots[:, probe]] == 0)
                places, firsts = np.unique(slots[free, probe], return_index=True)
                self._table[places] = numbers[free[firsts]]
                done = self._table[slots[:, probe]] == numbers
                slots, numbers = slots[~done], numbers[~done]
        self._used = int(np.count_nonzero(self._table))


def _likeness(signatures: NDArray[np.uint8], one: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimated Jaccard index of `one` with each of `signatures`."""
    return ((signatures == one).mean(axis=1) - _CHANCE) / (1 - _CHANCE)


class NearDuplicateStep:
    """The step that drops a document nearly equal to one that was kept."""

    def __init__(self, config: NearDuplicatesConfig, *, named: bool) -> None:
        """`named`: remember where kept documents came from (about 120 bytes each), to say which one is repeated."""
        self._texts = NearDuplicates(config.threshold)
        self._paths: list[str] | None = [] if named else None

    def __call__(self, document: Document) -> Document | Dropped:
        found = signature(document.words.hashes)
        if found is None:
            return document
        first = self._texts.first(found)
        if first is not None:
            return Dropped("near-duplicate", "" if self._paths is None else f"of {self._paths[first]}")
        if self._paths is not None:
            self._paths.append(document.path)
        return document

    def figures(self) -> dict[str, Any]:
        """How texts were compared, for the ledger."""
        return {"compared": self._texts.kept} | dict(zip(("bands", "rows"), self._texts.shape, strict=True))
