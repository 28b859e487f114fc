"""The k largest of very many numbers, exactly, in bounded memory, without sorting them.

A sample brackets the k-th largest; one pass counts what lies above the bracket and collects what lies inside, and the
k-th is picked among the collected. Where the sample misled, a histogram over the bits gives a bracket that cannot
miss. Among equals the lower index comes first. Scores are not negative, so the order of fp32 is that of its bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from trine.merge.arithmetic import Seen, scan
from trine.merge.dtypes import Array

Spans = Sequence[tuple[int, int]]
Scores = Callable[[int, int], Sequence[Array]]
"""Scores of elements [start, stop), an array per stream."""


@runtime_checkable
class Surveyor(Protocol):
    """Scores that are searched where they are computed."""

    def __call__(self, start: int, stop: int) -> Sequence[Array]:
        """As Scores."""
        ...

    def sample(self, starts: Sequence[int], count: int) -> Array:
        """[streams, pieces, count]: scores of `count` elements from each of `starts` on."""
        ...

    def survey(self, brackets: Sequence[tuple[int, float, float]], most: int) -> list[Seen]:
        """What each (stream, low, high) finds in one pass over all spans; up to `most` inside are kept."""
        ...


Rank = int | float
"""How many are selected; a float is a share of the scores that are not 0."""
_PIECE = 1024
_COLLECT = 1 << 18
"""A tensor with no more elements than this is collected whole."""
_MOST = 1 << 24
"""No more are collected of any."""


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


def largest(scores: Scores, spans: Spans, ranks: Sequence[Sequence[Rank]]) -> list[list[Cut]]:
    """The cut that selects the k largest, for each k of each stream's `ranks`.

    `spans` cover the elements in order. Cost: one pass over the scores in the usual case, three more otherwise.
    """
    scores, size = _comparable(scores), spans[-1][1] if spans else 0
    brackets = [
        _Bracket(stream, rank)
        for stream, one in enumerate(ranks)
        for rank in sorted(set(one))
        if (0 < rank < size if isinstance(rank, int) else 0 < rank < 1)
    ]
    found: dict[tuple[int, Rank], Cut] = {}
    if brackets:
        if size > _COLLECT:
            _enclose(scores, size, brackets)
        _search(scores, spans, brackets)
        for bracket in brackets:
            found[bracket.stream, bracket.wanted] = bracket.pick(scores, spans) or _by_histogram(scores, spans, bracket)
    full = [[ALL if (k >= size if isinstance(k, int) else k >= 1) else NONE for k in one] for one in ranks]
    return [
        [found.get((stream, k), other) for k, other in zip(one, full[stream], strict=True)]
        for stream, one in enumerate(ranks)
    ]


def _comparable(scores: Scores) -> Scores:
    """`scores` with NaN, which nothing can be compared with, as the largest of all."""

    if isinstance(scores, Surveyor):
        return scores

    def compared(start: int, stop: int) -> Sequence[Array]:
        found = scores(start, stop)
        return [np.nan_to_num(one, nan=np.inf, posinf=np.inf) if np.isnan(one.max()) else one for one in found]

    return compared


@dataclass
class _Bracket:
    """Two values that should enclose the rank-th largest of a stream, and what one pass finds about them."""

    stream: int
    wanted: Rank
    low: float = -math.inf
    high: float = math.inf
    seen: Seen = field(default_factory=lambda: Seen(np.zeros((0, 5), np.int64), None))

    @property
    def rank(self) -> int:
        """The wanted rank as a number, once every block was seen."""
        return self.wanted if isinstance(self.wanted, int) else int(self.wanted * int(self.seen.counts[:, 3].sum()))

    def pick(self, scores: Scores, spans: Spans) -> Cut | None:
        """The cut, or None when the rank lies outside the bracket."""
        rank = self.rank
        if rank == 0:
            return NONE
        above, at_high, at_low, _, inside = self.seen.counts.T
        left = rank - int(above.sum())
        if left <= 0:
            return None
        if left <= at_high.sum():
            return self._among_equals(scores, spans, self.high, at_high, left)
        left -= int(at_high.sum())
        if left <= inside.sum():
            values = self.seen.inside
            return None if values is None else self._inside(scores, spans, values, left)
        left -= int(inside.sum())
        if left <= at_low.sum() and self.low < self.high:
            return self._among_equals(scores, spans, self.low, at_low, left)
        return None

    def _inside(self, scores: Scores, spans: Spans, values: Array, left: int) -> Cut:
        value = np.partition(values, len(values) - left)[len(values) - left]
        left -= int(np.count_nonzero(values > value))
        blocks = np.searchsorted(np.cumsum(self.seen.counts[:, 4]), np.flatnonzero(values == value), side="right")
        return self._among_equals(scores, spans, float(value), np.bincount(blocks, minlength=len(spans)), left)

    def _among_equals(self, scores: Scores, spans: Spans, value: float, counts: Array, left: int) -> Cut:
        """The cut at the left-th element equal to `value`: only the block that holds it is read again."""
        before = np.cumsum(counts)
        block = int(np.searchsorted(before, left))
        start, stop = spans[block]
        left -= int(before[block] - counts[block])
        equal = np.flatnonzero(scores(start, stop)[self.stream] == value)
        return Cut(value, start + int(equal[left - 1]))


def _search(scores: Scores, spans: Spans, brackets: list[_Bracket]) -> None:
    if isinstance(scores, Surveyor):
        size = spans[-1][1]
        most = min(max(size // 8, min(size, _COLLECT)), _MOST)
        bounds = [(one.stream, one.low, one.high) for one in brackets]
        for one, seen in zip(brackets, scores.survey(bounds, most), strict=True):
            one.seen = seen
        return
    parts: list[list[Seen]] = [[] for _ in brackets]
    for start, stop in spans:
        found = scores(start, stop)
        for one, seen in zip(brackets, parts, strict=True):
            seen.append(scan(found[one.stream], one.low, one.high))
    for one, seen in zip(brackets, parts, strict=True):
        inside = [part.inside for part in seen if part.inside is not None]
        one.seen = Seen(np.concatenate([part.counts for part in seen]), np.concatenate(inside))


def _enclose(scores: Scores, size: int, brackets: list[_Bracket]) -> None:
    """Give each bracket its bounds from a sample of pieces that lie evenly over the tensor."""
    pieces = min(max(size // 64, 1 << 16), 1 << 20) // _PIECE
    starts = [i * (size - _PIECE) // (pieces - 1) for i in range(pieces)]
    if isinstance(scores, Surveyor):
        sample = scores.sample(starts, _PIECE)
    else:
        pieces_of = [[one.copy() for one in scores(start, start + _PIECE)] for start in starts]
        sample = [np.stack(one) for one in zip(*pieces_of, strict=True)]
    for stream in {one.stream for one in brackets}:
        rows = sample[stream]
        for bracket in (one for one in brackets if one.stream == stream):
            bracket.low, bracket.high = _bounds(bracket.wanted, size, rows)


def _bounds(wanted: Rank, size: int, rows: Array) -> tuple[float, float]:
    """Values six standard errors to both sides of the rank, the error being that of pieces as different as they are."""
    count = rows.size
    varying = (rows != 0).mean(axis=1) if isinstance(wanted, float) else 1
    share = wanted * np.mean(varying) if isinstance(wanted, float) else wanted / size
    place = count - 1 - min(int(share * count), count - 1)
    parted = np.partition(rows, place, axis=None)
    middle = parted[place]
    of_piece = (rows > middle).mean(axis=1) - (wanted * varying if isinstance(wanted, float) else 0)
    error = max(math.sqrt(share * (1 - share) / count), float(np.std(of_piece)) / math.sqrt(len(rows)))
    margin = 6 * error + 4 / count
    high, low = count - 1 - int((share - margin) * count), count - 1 - int((share + margin) * count)
    parted.partition([min(max(one, 0), count - 1) for one in (low, high)])
    return 0.0 if low < 0 else float(parted[low]), math.inf if high >= count - 1 else float(parted[high])


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
    cut = again.pick(scores, spans)
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
