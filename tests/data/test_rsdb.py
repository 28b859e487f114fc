"""The Random Sequential Document Buffer: nothing lost, order kept, drawn evenly, resumed anywhere."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trine.data.loader import batches
from trine.data.pack import epoch_order
from trine.data.planned import PlannedStream, Stage
from trine.data.shards import ShardWriter, TokenSet, TokenShards, write_index
from trine.errors import BadInput

LENGTH, NOMINAL, SEED = 32, 4, 3


def numbered(folder: Path, lengths: list[int]) -> TokenSet:
    """A set in which every token is its own number, so that each can be told from all others."""
    total, begin = sum(lengths), 0
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, "train", np.dtype("<u4"), 500) as writer:
        for length in lengths:
            writer.add(np.arange(begin, begin + length), length)
            begin += length
    vocabulary = max(total, 70_000)
    write_index(folder, {"train": writer.summary()}, np.ones(vocabulary, np.uint16), None, None, "x")
    return TokenShards(folder).sets["train"]


def buffered(
    documents: TokenSet, length: int = LENGTH, masked: bool = True, state: dict[str, Any] | None = None
) -> PlannedStream:
    return PlannedStream(documents, [Stage(0, length, "rsdb", masked, NOMINAL)], SEED, state)


@pytest.fixture
def documents(tmp_path: Path) -> TokenSet:
    return numbered(tmp_path / "set", np.random.default_rng(0).integers(0, 150, 80).tolist())


def document_of(documents: TokenSet, tokens: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(documents.lengths), tokens, side="right")


def test_each_epoch_gives_every_token_once_and_each_document_in_order(documents: TokenSet) -> None:
    stream = buffered(documents)
    total = documents.tokens
    flat = np.concatenate([stream.sequence(i)[0] for i in range(3 * total // LENGTH + 1)])
    for epoch in range(3):
        text = flat[epoch * total : (epoch + 1) * total]
        assert sorted(text.tolist()) == list(range(total))
        owners = document_of(documents, text)
        for document in np.unique(owners):
            assert (np.diff(text[owners == document]) == 1).all()
    assert flat[:total].tolist() != flat[total : 2 * total].tolist()


def test_targets_are_the_next_token_of_the_document_or_nothing(documents: TokenSet) -> None:
    stream = buffered(documents)
    unmasked = buffered(documents, masked=False)
    lasts = set((np.cumsum(documents.lengths) - 1).tolist())
    for i in range(100):
        tokens, targets, ids = stream.sequence(i)
        assert ids[0] == 0
        assert (np.flatnonzero(np.diff(ids)) == np.flatnonzero(np.diff(tokens) != 1)).all()
        assert (targets == [-1 if t in lasts else t + 1 for t in tokens.tolist()]).all()
        crossing = unmasked.sequence(i)[1]
        assert (crossing[:-1] == tokens[1:]).all()
        assert crossing[-1] == targets[-1]


def test_it_holds_twice_its_size_and_is_refilled_in_bulk_at_its_size(documents: TokenSet) -> None:
    """Every segment is of a document that a buffer with exactly this rule holds at that moment."""
    stream = buffered(documents)
    order = [d for d in epoch_order(documents.documents, SEED, 0).tolist() if documents.lengths[d]]
    left = dict(enumerate(documents.lengths.tolist()))
    live, entered, largest = set[int](), 0, 0
    for i in range(documents.tokens // LENGTH):
        tokens, _, ids = stream.sequence(i)
        for number in np.unique(ids):
            segment = tokens[ids == number]
            if len(live) <= NOMINAL:
                room = 2 * NOMINAL - len(live)
                live |= set(order[entered : entered + room])
                entered += room
            largest = max(largest, len(live))
            document = int(document_of(documents, segment[:1])[0])
            assert document in live
            left[document] -= len(segment)
            if left[document] == 0:
                live.remove(document)
    assert largest == 2 * NOMINAL
    assert entered >= len(order)


def test_documents_are_drawn_evenly(tmp_path: Path) -> None:
    """Chi-square of first picks over a buffer that nothing leaves: 7 degrees of freedom, 99.9 % is 24.3."""
    documents = numbered(tmp_path / "long", [40_000] * 12)
    stream = buffered(documents, 8)
    picks = document_of(documents, np.array([stream.sequence(i)[0][0] for i in range(8000)]))
    counts = np.bincount(picks, minlength=12)
    held = epoch_order(12, SEED, 0)[: 2 * NOMINAL]
    assert counts.sum() == counts[held].sum()
    assert ((counts[held] - 1000) ** 2 / 1000).sum() < 24.3
    repeats = (picks[1:] == picks[:-1]).mean()
    assert abs(repeats - 1 / 8) < 0.02


def test_resumed_at_fifty_random_positions_the_rest_is_the_same(documents: TokenSet) -> None:
    whole = buffered(documents)
    reference = [whole.sequence(i) for i in range(1030)]
    for position in np.random.default_rng(1).integers(0, 1000, 50).tolist():
        state = json.loads(json.dumps(whole.state(position)))
        assert position - state["sequence"] < 256
        resumed = buffered(documents, state=state)
        fresh = buffered(documents)
        assert fresh.state(position) == state
        for i in range(position, position + 30):
            for ours, expected in zip(resumed.sequence(i), reference[i], strict=True):
                assert (ours == expected).all()


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_any_number_of_workers_gives_the_same_batches(documents: TokenSet, workers: int) -> None:
    def rows(count: int) -> torch.Tensor:
        stream = buffered(documents)
        return torch.stack([batch.tokens for batch in islice(batches(stream, 0, 4, count), 40)])

    assert torch.equal(rows(workers), rows(0))


def test_going_back_gives_the_same_sequence(documents: TokenSet) -> None:
    stream = buffered(documents)
    first = stream.sequence(5)[0]
    stream.sequence(20_000)
    assert (stream.sequence(5)[0] == first).all()


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="empty"):
        buffered(numbered(tmp_path / "none", []))
