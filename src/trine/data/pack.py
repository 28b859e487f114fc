"""From documents to sequences: carry-over packing as a pure function of position.

An epoch is the set's documents in an order drawn from (seed, epoch), laid end to end; epochs follow one
another without a gap. Sequence i is tokens [i T, i T + T] of that endless stream: T inputs and, shifted by one,
T targets, so what a sequence cuts off begins the next one and every token is predicted exactly once per epoch.
Finding sequence i costs a binary search; nothing before it is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from trine.data.shards import TokenSet
from trine.errors import BadInput


def keyed_generator(name: str) -> np.random.Generator:
    """A generator of its own for each `name`."""
    key = hashlib.sha256(name.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))


def epoch_order(documents: int, seed: int, epoch: int) -> np.ndarray:
    """The order, int64 [documents], in which an epoch takes a set's documents."""
    return keyed_generator(f"{seed}/epoch/{epoch}").permutation(documents)


class Segment(NamedTuple):
    """A piece of a document in a sequence."""

    document: int
    begin: int
    take: int


@dataclass(frozen=True)
class _Epoch:
    order: np.ndarray
    """Document numbers in the order of this epoch."""
    ends: np.ndarray
    """Position in the epoch after each of them."""


class TokenStream:
    """The endless stream of one set, by sequence index."""

    def __init__(
        self,
        documents: TokenSet,
        sequence_length: int,
        seed: int,
        *,
        shuffle: bool = True,
        masked: bool = True,
    ) -> None:
        """`masked`: targets never cross into the next document. Raises BadInput for an empty set."""
        if documents.tokens == 0:
            raise BadInput("the token set is empty: nothing to train on")
        self.documents, self.length, self.seed = documents, sequence_length, seed
        self.shuffle, self.masked = shuffle, masked
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def sequence(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets (int64 [T], -1 ignored) and document ids (int32 [T], 0 for the row's first).

        A token that is not trained on is no target.
        """
        tokens = np.empty(self.length + 1, dtype=np.int64)
        ids = np.empty(self.length + 1, dtype=np.int32)
        aims = np.empty(self.length + 1, dtype=np.int64)
        filled = 0
        for number, (document, begin, take) in enumerate(self._segments(index * self.length, self.length + 1)):
            piece = self.documents.read(document, begin, begin + take)
            tokens[filled : filled + take] = piece
            aims[filled : filled + take] = self.documents.as_targets(piece, document, begin)
            ids[filled : filled + take] = number
            filled += take
        targets = aims[1:]
        if self.masked:
            targets[ids[1:] != ids[:-1]] = -1
        return tokens[:-1], targets, ids[:-1]

    def segments(self, index: int) -> list[Segment]:
        """The pieces of documents that sequence `index` is filled with."""
        return list(self._segments(index * self.length, self.length))

    def _segments(self, position: int, count: int) -> Iterator[Segment]:
        while count:
            number, offset = divmod(position, self.documents.tokens)
            epoch = self._epoch(number)
            place = int(np.searchsorted(epoch.ends, offset, side="right"))
            document = int(epoch.order[place])
            begin = offset - int(epoch.ends[place] - self.documents.lengths[document])
            take = min(int(self.documents.lengths[document]) - begin, count)
            yield Segment(document, begin, take)
            position, count = position + take, count - take

    def needs_ids(self, index: int) -> bool:
        """Whether attention must be told documents apart in sequence `index`."""
        return self.masked

    def _make_epoch(self, number: int) -> _Epoch:
        count = self.documents.documents
        order = epoch_order(count, self.seed, number) if self.shuffle else np.arange(count)
        return _Epoch(order, np.cumsum(self.documents.lengths[order]))
