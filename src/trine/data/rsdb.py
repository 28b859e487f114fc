"""From documents to sequences through a buffer: the Random Sequential Document Buffer of the Trinity report.

Documents enter the buffer whole, in the order of the epoch, each with a read head at 0. A sequence is filled by
picking a buffered document uniformly at random and copying from its read head until the document or the
sequence ends, then picking again. The buffer holds twice its nominal size; when the unfinished documents fall
to the nominal size it is refilled to twice that. No token is dropped, and a document is read in order. An
epoch's last documents are drained before the next epoch enters, so each token comes once per epoch.

The picks of sequence i are drawn from (seed, i) and depend on document lengths alone, so the buffer is cheap to
run ahead of the reading. `state` gives what a checkpoint keeps: a recent buffer, a few sequences back at most.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from trine.data.pack import epoch_order, keyed_generator
from trine.data.shards import TokenSet
from trine.errors import BadInput

_EVERY = 256
"""Sequences between two kept buffers: resuming replays fewer than this many."""
_KEPT_BUFFERS = 64
_KEPT_PLANS = 4096


@dataclass(frozen=True)
class _Segment:
    document: int
    begin: int
    take: int


@dataclass
class _Buffer:
    """The buffer before a sequence is filled."""

    sequence: int
    epoch: int
    entered: int
    """Documents of the epoch that have entered."""
    documents: list[int]
    """Unfinished documents."""
    heads: list[int]
    """Tokens read of each."""

    def copy(self) -> _Buffer:
        return replace(self, documents=self.documents.copy(), heads=self.heads.copy())


class BufferedStream:
    """The endless stream of one set, by sequence index; reading ahead in order is fast, going back replays."""

    def __init__(
        self,
        documents: TokenSet,
        sequence_length: int,
        seed: int,
        buffer_documents: int,
        *,
        masked: bool = True,
        state: dict[str, Any] | None = None,
    ) -> None:
        """`buffer_documents` is the nominal size, half of what the buffer holds. `state` is that of an earlier
        stream of the same arguments. Raises BadInput for an empty set."""
        if documents.tokens == 0:
            raise BadInput("the token set is empty: nothing to train on")
        self.documents, self.length, self.seed, self.masked = documents, sequence_length, seed, masked
        self.nominal = buffer_documents
        self._order = lru_cache(maxsize=2)(self._order_of)
        self._lock = threading.Lock()
        self._plans: dict[int, list[_Segment]] = {}
        first = _Buffer(0, 0, 0, [], [])
        self._now = first if state is None else _Buffer(**state)
        self._kept = {0: first.copy(), self._now.sequence: self._now.copy()}

    def sequence(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets (int64 [T], -1 ignored) and document ids (int32 [T], 0 for the row's first).

        The target of a row's last token is the token its document goes on with, -1 where it ends.
        """
        with self._lock:
            segments = self._plan_of(index)
        tokens = np.empty(self.length, dtype=np.int64)
        targets = np.full(self.length, -1, dtype=np.int64)
        ids = np.empty(self.length, dtype=np.int32)
        filled = 0
        for number, segment in enumerate(segments):
            end = segment.begin + segment.take
            follows = min(end + 1, int(self.documents.lengths[segment.document]))
            text = self.documents.read(segment.document, segment.begin, follows)
            tokens[filled : filled + segment.take] = text[: segment.take]
            targets[filled : filled + len(text) - 1] = text[1:]
            ids[filled : filled + segment.take] = number
            filled += segment.take
        if not self.masked:
            targets[:-1] = tokens[1:]
        return tokens, targets, ids

    def state(self, index: int) -> dict[str, Any]:
        """What a new stream needs to give sequence `index` and all after it: JSON, integers only."""
        with self._lock:
            while self._now.sequence < index:
                self._advance()
            return asdict(self._kept[self._newest(index)])

    def _order_of(self, epoch: int) -> np.ndarray:
        order = epoch_order(self.documents.documents, self.seed, epoch)
        return order[self.documents.lengths[order] > 0]

    def _plan_of(self, index: int) -> list[_Segment]:
        if index not in self._plans:
            if index < self._now.sequence:
                self._now = self._kept[self._newest(index)].copy()
            while self._now.sequence <= index:
                self._advance()
        return self._plans[index]

    def _newest(self, index: int) -> int:
        return max(sequence for sequence in self._kept if sequence <= index)

    def _advance(self) -> None:
        """Plan the next sequence; keep the buffer behind it now and then."""
        now = self._now
        self._plans[now.sequence] = self._fill(now)
        now.sequence += 1
        if now.sequence % _EVERY == 0:
            self._kept[now.sequence] = now.copy()
        if len(self._kept) > _KEPT_BUFFERS:
            del self._kept[sorted(self._kept)[1]]
        if len(self._plans) > _KEPT_PLANS:
            del self._plans[next(iter(self._plans))]

    def _fill(self, buffer: _Buffer) -> list[_Segment]:
        draw = keyed_generator(f"{self.seed}/rsdb/{buffer.sequence}").random
        documents, heads, lengths = buffer.documents, buffer.heads, self.documents.lengths
        segments, free = [], self.length
        while free:
            if len(documents) <= self.nominal:
                self._refill(buffer)
            place = int(draw() * len(documents))
            document, head = documents[place], heads[place]
            left = int(lengths[document]) - head
            take = min(left, free)
            segments.append(_Segment(document, head, take))
            free -= take
            if take < left:
                heads[place] = head + take
            else:
                documents[place], heads[place] = documents[-1], heads[-1]
                documents.pop()
                heads.pop()
        return segments

    def _refill(self, buffer: _Buffer) -> None:
        """Fill up to twice the nominal size with what the epoch still has; begin the next once all is read."""
        while True:
            order = self._order(buffer.epoch)
            chosen = order[buffer.entered : buffer.entered + 2 * self.nominal - len(buffer.documents)]
            buffer.entered += len(chosen)
            buffer.documents += chosen.tolist()
            buffer.heads += [0] * len(chosen)
            if buffer.documents:
                return
            if buffer.entered == len(order):
                buffer.epoch, buffer.entered = buffer.epoch + 1, 0
