"""The documents of one source on their way into sequences: how far they are read, and which comes next.

Documents enter a buffer whole, in the order of the epoch, each with a read head at 0, and leave when they are read.
An epoch's last documents leave before the next epoch enters, so each token comes once per epoch. The packings differ
in what the buffer holds and what is taken from it:

    carry_over  one document; a document that a sequence cuts off goes on at its source's next turn
    rsdb        the Random Sequential Document Buffer of the Trinity Large report: a document drawn uniformly at
                random, read until it or the sequence ends; the buffer holds twice its nominal size, and is filled up
                to that when its unfinished documents fall to the nominal size
    best_fit    best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): a batch of
                documents, longest first, each into the fullest sequence that still has room, the sequences then
                shuffled; only a document longer than a sequence is cut

What is read so far means the same to all of them, so one packing can take over from another without losing a token.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from trine.data.pack import Segment, epoch_order, keyed_generator

BEST_FIT_DOCUMENTS = 4096
"""Documents that best-fit packing arranges at a time."""


@dataclass
class Position:
    """How far a source's documents are read."""

    epoch: int = 0
    entered: int = 0
    """Documents of the epoch that have entered the buffer."""
    documents: list[int] = field(default_factory=list)
    """Unfinished documents."""
    heads: list[int] = field(default_factory=list)
    """Tokens read of each."""
    bins: list[list[tuple[int, int]]] = field(default_factory=list)
    """Best fit: sequences arranged and not yet given, last first, as (place in `documents`, tokens)."""

    def copy(self) -> Position:
        return Position(self.epoch, self.entered, self.documents.copy(), self.heads.copy(), self.bins.copy())


class Source:
    """One source's documents. `position` is the caller's, so that it can be kept and gone back to."""

    def __init__(self, lengths: np.ndarray, members: np.ndarray | None, seed: int, name: str) -> None:
        """`lengths` of all documents of the set; `members`: those of this source, None for all."""
        self.lengths, self._members, self._seed, self._name = lengths, members, seed, name
        self._order = lru_cache(maxsize=2)(self._order_of)

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._members is None:
            order = epoch_order(len(self.lengths), self._seed, epoch)
        else:
            name = f"{self._seed}/epoch/{epoch}/{self._name}"
            order = keyed_generator(name).permutation(self._members)
        return order[self.lengths[order] > 0]

    def carry_over(self, position: Position, free: int) -> Segment:
        """The next piece, of at most `free` tokens, of the one document that is open."""
        if not position.documents:
            self._enter(position, 1)
        return self._take(position, 0, free)

    def draw(self, position: Position, free: int, nominal: int, draw: Callable[[], float]) -> Segment:
        """RSDB: the next piece, of at most `free` tokens, of a document that `draw`, uniform in [0, 1), picks."""
        if len(position.documents) <= nominal:
            self._enter(position, 2 * nominal)
        return self._take(position, int(draw() * len(position.documents)), free)

    def best_fit(self, position: Position, length: int, key: str) -> list[Segment]:
        """One arranged sequence of at most `length` tokens."""
        if not position.bins:
            self._enter(position, BEST_FIT_DOCUMENTS)
            position.bins = self._arrange(position, length)
            keyed_generator(key).shuffle(position.bins)
        segments = []
        for place, take in position.bins.pop():
            segments.append(Segment(position.documents[place], position.heads[place], take))
            position.heads[place] += take
        if not position.bins:
            position.documents, position.heads = [], []
        return segments

    def settle(self, position: Position) -> None:
        """Give up what best fit has arranged: its documents go on from where they were read to."""
        left = [
            (document, head)
            for document, head in zip(position.documents, position.heads, strict=True)
            if head < self.lengths[document]
        ]
        position.bins = []
        position.documents, position.heads = [one for one, _ in left], [head for _, head in left]

    def _arrange(self, position: Position, length: int) -> list[list[tuple[int, int]]]:
        left = [int(self.lengths[d]) - h for d, h in zip(position.documents, position.heads, strict=True)]
        full = [[(place, length)] for place, tokens in enumerate(left) for _ in range(tokens // length)]
        rest = sorted((-(tokens % length), place) for place, tokens in enumerate(left) if tokens % length)
        bins: list[list[tuple[int, int]]] = []
        room: list[tuple[int, int]] = []  # free tokens and number in `bins`, ascending
        for negative, place in rest:
            tokens, where = -negative, bisect_left(room, (-negative, -1))
            free, number = room.pop(where) if where < len(room) else (length, len(bins))
            if number == len(bins):
                bins.append([])
            bins[number].append((place, tokens))
            if free > tokens:
                insort(room, (free - tokens, number))
        return full + bins

    def _take(self, position: Position, place: int, free: int) -> Segment:
        document, head = position.documents[place], position.heads[place]
        left = int(self.lengths[document]) - head
        if left > free:
            position.heads[place] = head + free
            return Segment(document, head, free)
        position.documents[place], position.heads[place] = position.documents[-1], position.heads[-1]
        position.documents.pop()
        position.heads.pop()
        return Segment(document, head, left)

    def _enter(self, position: Position, capacity: int) -> None:
        """Fill the buffer with what the epoch still has; begin the next epoch once all is read."""
        while True:
            order = self._order(position.epoch)
            chosen = order[position.entered : position.entered + max(0, capacity - len(position.documents))]
            position.entered += len(chosen)
            position.documents += chosen.tolist()
            position.heads += [0] * len(chosen)
            if position.documents:
                return
            if position.entered == len(order):
                position.epoch, position.entered = position.epoch + 1, 0
