"""The stream of a run whose documents pass through buffers: mixed from sources, changed at stages.

A sequence is filled segment by segment. Each segment is of the source that is furthest behind its share of the
tokens given since the mix began, so after any number of tokens each source is within a sequence's length of its
share; best fit, whose sequences are arranged as a whole, chooses the source once per sequence. Within the source
the packing chooses the document (`trine.data.buffer`).

Which segments make sequence i depends on (seed, i), the stages and document lengths alone, so the stream is cheap to
run ahead of the reading. `state` gives what a checkpoint keeps: recent positions, a few sequences back at most.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from trine.data.buffer import Position, Source
from trine.data.pack import Segment, keyed_generator
from trine.data.shards import TokenSet
from trine.errors import BadInput

_EVERY = 256
"""Sequences between two kept states: resuming replays fewer than this many."""
_KEPT_STATES = 64
_KEPT_PLANS = 4096


@dataclass(frozen=True)
class Stage:
    """How sequences are made from `first_sequence` on."""

    first_sequence: int
    length: int
    packing: Literal["carry_over", "rsdb", "best_fit"] = "carry_over"
    masked: bool = True
    """Attention and targets stay inside a document."""
    buffer_documents: int = 4096
    """Nominal size of the RSDB buffer, divided over the sources by share."""
    shares: tuple[float, ...] | None = None
    """Share of the tokens by source of the set; None: as many as each source has."""


@dataclass
class _State:
    """What is known before a sequence is filled."""

    sequence: int
    stage: int
    taken: list[int]
    """Tokens by source since the mix began."""
    positions: list[Position]

    def copy(self) -> _State:
        return _State(self.sequence, self.stage, self.taken.copy(), [one.copy() for one in self.positions])


class PlannedStream:
    """The endless stream of one set, by sequence index; reading ahead in order is fast, going back replays."""

    def __init__(
        self, documents: TokenSet, stages: Sequence[Stage], seed: int, state: dict[str, Any] | None = None
    ) -> None:
        """`stages` in order, the first from sequence 0. `state` is that of an earlier stream of the same arguments.
        Raises BadInput for an empty set."""
        if documents.tokens == 0:
            raise BadInput("the token set is empty: nothing to train on")
        self.documents, self.stages, self.seed = documents, tuple(stages), seed
        self._shares, self._sources = self._split()
        self._lock = threading.Lock()
        self._plans: dict[int, list[Segment]] = {}
        count = len(self._sources)
        first = _State(0, 0, [0] * count, [Position() for _ in range(count)])
        self._now = first.copy() if state is None else _read_state(state)
        self._kept = {0: first, self._now.sequence: self._now.copy()}

    def _split(self) -> tuple[list[tuple[float, ...]], list[Source]]:
        """Shares by stage, and the sources they are of: all documents as one where no stage has a mix."""
        documents = self.documents
        if all(stage.shares is None for stage in self.stages):
            return [(1.0,)] * len(self.stages), [Source(documents.lengths, None, self.seed, "")]
        names = documents.source_names
        natural = tuple(int(tokens) / documents.tokens for tokens in documents.source_tokens)
        members = [np.flatnonzero(documents.sources == place) for place in range(len(names))]
        sources = [Source(documents.lengths, m, self.seed, name) for name, m in zip(names, members, strict=True)]
        return [stage.shares or natural for stage in self.stages], sources

    def stage(self, index: int) -> Stage:
        """The stage that sequence `index` belongs to."""
        return [stage for stage in self.stages if stage.first_sequence <= index][-1]

    def sequence(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets (int64 [T], -1 ignored) and document ids (int32 [T], 0 for the row's first, -1 padding).

        The target of a row's last token is the token its document goes on with, -1 where it ends. A token that is not
        trained on is no target. Padding is token 0; rows that are not masked have document id 0 everywhere else.
        """
        stage = self.stage(index)
        tokens = np.zeros(stage.length, dtype=np.int64)
        targets = np.full(stage.length, -1, dtype=np.int64)
        ids = np.full(stage.length, -1, dtype=np.int32)
        filled = 0
        for number, segment in enumerate(self.segments(index)):
            end = segment.begin + segment.take
            follows = min(end + 1, int(self.documents.lengths[segment.document]))
            text = self.documents.read(segment.document, segment.begin, follows)
            aims = self.documents.as_targets(text, segment.document, segment.begin)
            tokens[filled : filled + segment.take] = text[: segment.take]
            targets[filled : filled + len(text) - 1] = aims[1:]
            ids[filled : filled + segment.take] = number if stage.masked else 0
            if filled and not stage.masked:
                targets[filled - 1] = aims[0]
            filled += segment.take
        return tokens, targets, ids

    def segments(self, index: int) -> list[Segment]:
        """The pieces of documents that sequence `index` is filled with."""
        with self._lock:
            if index not in self._plans:
                if index < self._now.sequence:
                    self._now = self._kept[self._newest(index)].copy()
                while self._now.sequence <= index:
                    self._advance()
            return self._plans[index]

    def needs_ids(self, index: int) -> bool:
        """Whether attention must be told documents or padding apart in sequence `index`."""
        stage = self.stage(index)
        return stage.masked or stage.packing == "best_fit"

    def state(self, index: int) -> dict[str, Any]:
        """What a new stream needs to give sequence `index` and all after it: JSON."""
        with self._lock:
            while self._now.sequence < index:
                self._advance()
            return asdict(self._kept[self._newest(index)])

    def _newest(self, index: int) -> int:
        return max(sequence for sequence in self._kept if sequence <= index)

    def _advance(self) -> None:
        """Plan the next sequence; keep the state behind it now and then."""
        now = self._now
        if now.stage + 1 < len(self.stages) and self.stages[now.stage + 1].first_sequence == now.sequence:
            self._enter_stage(now)
        self._plans[now.sequence] = self._fill(now)
        now.sequence += 1
        if now.sequence % _EVERY == 0:
            self._kept[now.sequence] = now.copy()
        if len(self._kept) > _KEPT_STATES:
            del self._kept[sorted(self._kept)[1]]
        if len(self._plans) > _KEPT_PLANS:
            del self._plans[next(iter(self._plans))]

    def _enter_stage(self, now: _State) -> None:
        former, now.stage = now.stage, now.stage + 1
        if self._shares[now.stage] != self._shares[former]:
            now.taken = [0] * len(now.taken)
        for source, position in zip(self._sources, now.positions, strict=True):
            source.settle(position)

    def _fill(self, now: _State) -> list[Segment]:
        stage, key = self.stages[now.stage], f"{self.seed}/{self.stages[now.stage].packing}/{now.sequence}"
        if stage.packing == "best_fit":
            chosen = self._behind(now)
            segments = self._sources[chosen].best_fit(now.positions[chosen], stage.length, key)
            now.taken[chosen] += sum(segment.take for segment in segments)
            return segments
        draw = keyed_generator(key).random if stage.packing == "rsdb" else None
        segments, free = [], stage.length
        while free:
            chosen = self._behind(now)
            source, position = self._sources[chosen], now.positions[chosen]
            if draw is None:
                segment = source.carry_over(position, free)
            else:
                nominal = max(1, round(stage.buffer_documents * self._shares[now.stage][chosen]))
                segment = source.draw(position, free, nominal, draw)
            segments.append(segment)
            now.taken[chosen] += segment.take
            free -= segment.take
        return segments

    def _behind(self, now: _State) -> int:
        """The source that is furthest behind its share."""
        if len(now.taken) == 1:
            return 0
        shares, total = self._shares[now.stage], sum(now.taken) + 1
        owed = [share * total - taken if share else -np.inf for share, taken in zip(shares, now.taken, strict=True)]
        return owed.index(max(owed))


def _read_state(state: dict[str, Any]) -> _State:
    positions = [Position(**one) for one in state["positions"]]
    return _State(state["sequence"], state["stage"], list(state["taken"]), positions)
