"""The k largest of very many numbers, exactly, in bounded memory, without sorting them.

A sample brackets the k-th largest; one pass counts what lies above the bracket and collects what lies inside, and the
k-th is picked among the collected. Where the sample misled, a histogram over the bits gives a bracket that cannot
miss. Among equals the lower index comes first. Scores are not negative, so the order of fp32 is that of its bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from trine.merge.arithmetic import scan
from trine.merge.dtypes import Array

Spans = Sequence[tuple[int, int]]
Scores = Callable[[int, int], Sequence[Array]]
"""Scores of elements [start, stop), an array per stream."""
_PIECE = 64
_COLLECT = 1 << 18
"""A tensor with no more elements than this is collected whole."""


class Cut(NamedTuple):
    """What is selected: scores above `value`, and those equal to it up to position `last`."""

    value: float
    last: int

    def mask(self, scores: Array, start: int) -> Array:
        """Which of the scores of elements start, start + 1, ... are selected."""
        if self.last >= start + len(scores) - 1:
            return scores >= self.value
        kept = scores > self.value
        if self.last >= start:
            equal = scores[: self.last - start + 1] == self.value
            kept[: len(equal)] |= equal
        return kept


ALL, NONE = Cut(-math.inf, -1), Cut(math.inf, -1)


def largest(scores: Scores, spans: Spans, ranks: Sequence[Sequence[int]]) -> list[list[Cut]]:
    """The cut that selects the k largest, for each k of each stream's `ranks`.

    `spans` cover the elements in order. Cost: one pass over the scores in the usual case, three more otherwise.
    """
    scores, size = _comparable(scores), spans[-1][1] if spans else 0
    wanted = [[min(max(k, 0), size) for k in one] for one in ranks]
    inner = [sorted({k for k in one if 0 < k < size}) for one in wanted]
    found: list[dict[int, Cut]] = [{} for _ in ranks]
    if any(inner):
        brackets = _brackets(scores, size, inner)
        _search(scores, spans, brackets)
        for bracket in brackets:
            cut = bracket.pick(scores)
            if cut is None:
                cut = _by_histogram(scores, spans, bracket)
            found[bracket.stream][bracket.rank] = cut
    return [[found[i].get(k, ALL if k else NONE) for k in one] for i, one in enumerate(wanted)]


def _comparable(scores: Scores) -> Scores:
    """`scores` with NaN, which nothing can be compared with, as the largest of all."""

    def compared(start: int, stop: int) -> Sequence[Array]:
        found = scores(start, stop)
        return [np.nan_to_num(one, nan=np.inf, posinf=np.inf) if np.isnan(one.max()) else one for one in found]

    return compared


@dataclass
class _Bracket:
    """Two values that should enclose the rank-th largest of a stream, and what one pass finds about them."""

    stream: int
    rank: int
    low: float
    high: float
    above: int = 0
    at_high: list[int] = field(default_factory=list)
    at_low: list[int] = field(default_factory=list)
    values: list[Array] = field(default_factory=list)
    places: list[Array] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)

    def see(self, scores: Array, start: int) -> None:
        """Count and collect from a block."""
        self.spans.append((start, start + len(scores)))
        above, at_high, at_low, values, places = scan(scores, self.low, self.high, start)
        self.above += above
        self.at_high.append(at_high)
        self.at_low.append(at_low if self.low < self.high else 0)
        self.values.append(values)
        self.places.append(places)

    def pick(self, scores: Scores) -> Cut | None:
        """The cut, or None when the rank lies outside the bracket."""
        left = self.rank - self.above
        if left <= 0:
            return None
        if left <= sum(self.at_high):
            return self._among_equals(scores, self.high, self.at_high, left)
        left -= sum(self.at_high)
        values, places = np.concatenate(self.values), np.concatenate(self.places)
        if left <= len(values):
            value = np.partition(values, len(values) - left)[len(values) - left]
            left -= int(np.count_nonzero(values > value))
            return Cut(float(value), int(places[values == value][left - 1]))
        left -= len(values)
        if left <= sum(self.at_low):
            return self._among_equals(scores, self.low, self.at_low, left)
        return None

    def _among_equals(self, scores: Scores, value: float, counts: list[int], left: int) -> Cut:
        """The cut at the left-th element equal to `value`: only the block that holds it is read again."""
        before = np.cumsum(counts)
        block = int(np.searchsorted(before, left))
        start, stop = self.spans[block]
        left -= int(before[block]) - counts[block]
        equal = np.flatnonzero(scores(start, stop)[self.stream] == value)
        return Cut(value, start + int(equal[left - 1]))


def _search(scores: Scores, spans: Spans, brackets: list[_Bracket]) -> None:
    for start, stop in spans:
        found = scores(start, stop)
        for bracket in brackets:
            bracket.see(found[bracket.stream], start)


def _brackets(scores: Scores, size: int, ranks: Sequence[Sequence[int]]) -> list[_Bracket]:
    if size <= _COLLECT:
        return [_Bracket(i, k, -math.inf, math.inf) for i, one in enumerate(ranks) for k in one]
    pieces = min(max(size // 64, 1 << 16), 1 << 20) // _PIECE
    starts = [i * (size - _PIECE) // (pieces - 1) for i in range(pieces)]
    sample = [[one.copy() for one in scores(start, start + _PIECE)] for start in starts]
    brackets = []
    for stream, one in enumerate(ranks):
        if not one:
            continue
        values = np.sort(np.concatenate([piece[stream] for piece in sample]))[::-1]
        count = len(values)
        for rank in one:
            share = rank / size
            margin = 6 * math.sqrt(share * (1 - share) / count) + 4 / count
            high, low = int((share - margin) * count), int((share + margin) * count)
            bounds = (0.0 if low >= count else values[low], math.inf if high <= 0 else values[high])
            brackets.append(_Bracket(stream, rank, float(bounds[0]), float(bounds[1])))
    return brackets


def _by_histogram(scores: Scores, spans: Spans, missed: _Bracket) -> Cut:
    """The cut from the bits alone: 65,536 bins of the upper half, then of the lower; fp64 scores as fp32 first."""
    upper, above = _bin(_halves(scores, spans, missed.stream, None), missed.rank)
    low = np.array([upper << 16], np.uint32).view(np.float32)[0]
    high = np.array([(upper << 16) | 0xFFFF], np.uint32).view(np.float32)[0]
    lower, _ = _bin(_halves(scores, spans, missed.stream, upper), missed.rank - above)
    value = np.array([(upper << 16) | lower], np.uint32).view(np.float32)[0]
    assert low <= value <= high
    again = _Bracket(missed.stream, missed.rank, float(value), float(value))
    _search(scores, spans, [again])
    cut = again.pick(scores)
    assert cut is not None
    return cut


def _halves(scores: Scores, spans: Spans, stream: int, upper: int | None) -> Iterator[Array]:
    """Upper halves of the scores' bits, or the lower halves of those whose upper half is `upper`."""
    for start, stop in spans:
        bits = scores(start, stop)[stream].astype(np.float32, copy=False).view(np.uint32)
        yield bits >> 16 if upper is None else bits[bits >> 16 == upper] & 0xFFFF


def _bin(halves: Iterator[Array], rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th largest, and how many lie in the bins above it."""
    counts = np.zeros(1 << 16, np.int64)
    for half in halves:
        counts += np.bincount(half, minlength=1 << 16)
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, rank))
    return (1 << 16) - 1 - place, int(above[place - 1]) if place else 0
