"""Mixes, stages and best fit: shares kept, nothing lost when the packing changes, resumed anywhere."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from trine.data.pack import TokenStream
from trine.data.planned import PlannedStream, Stage
from trine.data.shards import ShardWriter, TokenSet, TokenShards, write_index

SEED = 3
NAMES = ("web", "code", "math")


def numbered(folder: Path, lengths: list[int], sources: list[int] | None = None) -> TokenSet:
    """A set in which every token is its own number; documents belong to `sources`, places in NAMES."""
    total, begin = sum(lengths), 0
    folder.mkdir(exist_ok=True)
    with ShardWriter(folder, "train", np.dtype("<u4"), 1 << 20) as writer:
        for place, length in enumerate(lengths):
            writer.add(np.arange(begin, begin + length), length, sources[place] if sources else 0)
            begin += length
    names = NAMES if sources else ()
    ones = np.ones(max(total, 70_000), np.uint16)
    write_index(folder, {"train": writer.summary()}, ones, None, None, "x", names)
    return TokenShards(folder).sets["train"]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    rng = np.random.default_rng(0)
    lengths = np.maximum(0, rng.lognormal(3.5, 1.0, 400)).astype(int).tolist()
    return numbered(tmp_path_factory.mktemp("set") / "one", lengths, rng.integers(0, 3, 400).tolist())


def read(stream: PlannedStream, begin: int, end: int) -> np.ndarray:
    """Every token of sequences begin ... end - 1 that is not padding."""
    rows = [stream.sequence(i) for i in range(begin, end)]
    return np.concatenate([tokens[ids >= 0] for tokens, _, ids in rows])


@pytest.mark.parametrize("packing", ["carry_over", "rsdb", "best_fit"])
@pytest.mark.parametrize("length", [512, 128])
def test_shares_are_kept_within_a_thousandth_over_a_million_tokens(tmp_path: Path, packing: str, length: int) -> None:
    """Also where one source's documents are much longer than a sequence, and from any point on."""
    rng = np.random.default_rng(1)
    sources = rng.integers(0, 3, 600).tolist()
    scale = (600, 100, 3000)
    lengths = [1 + int(rng.exponential(scale[source])) for source in sources]
    documents = numbered(tmp_path / "set", lengths, sources)
    wanted = (0.62, 0.3, 0.08)
    stream = PlannedStream(documents, [Stage(0, length, packing, shares=wanted, buffer_documents=40)], SEED)  # type: ignore[arg-type]
    taken, at = Counter[int](), []
    for i in range(2_200_000 // length):
        for segment in stream.segments(i):
            taken[int(documents.sources[segment.document])] += segment.take
        at.append([taken[source] for source in range(3)])
    totals = np.array(at)
    window = next(i for i, row in enumerate(totals) if row.sum() >= 1_000_000)
    for begin in range(0, len(totals) - window, 97):
        million = totals[begin + window] - totals[begin]
        assert np.abs(million / million.sum() - wanted).max() < 0.001


def test_a_mix_reads_each_source_in_full_before_it_reads_it_again(documents: TokenSet) -> None:
    stream = PlannedStream(documents, [Stage(0, 64, shares=(0.2, 0.5, 0.3))], SEED)
    seen = {source: list[int]() for source in range(3)}
    for i in range(1500):
        for segment in stream.segments(i):
            source = int(documents.sources[segment.document])
            begin = int(documents.lengths[: segment.document].sum()) + segment.begin
            seen[source] += range(begin, begin + segment.take)
    ends = np.cumsum(documents.lengths)
    for source, tokens in seen.items():
        size = int(documents.source_tokens[source])
        assert len(tokens) > size
        first = np.array(tokens[:size])
        assert len(set(first.tolist())) == size
        owners = np.searchsorted(ends, first, side="right")
        assert (documents.sources[owners] == source).all()


@pytest.mark.parametrize("masked", [True, False])
def test_unmixed_carry_over_gives_what_the_plain_stream_gives(documents: TokenSet, masked: bool) -> None:
    plain = TokenStream(documents, 48, SEED, masked=masked)
    planned = PlannedStream(documents, [Stage(0, 48, masked=masked)], SEED)
    for i in range(400):
        tokens, targets, ids = planned.sequence(i)
        expected = plain.sequence(i)
        assert (tokens == expected[0]).all()
        assert (targets[:-1] == expected[1][:-1]).all()
        if masked:
            assert targets[-1] == expected[1][-1]
            assert (ids == expected[2]).all()


STAGES = (
    Stage(0, 32, "carry_over"),
    Stage(40, 64, "rsdb", buffer_documents=12),
    Stage(90, 128, "best_fit"),
    Stage(110, 32, "best_fit", masked=False),
    Stage(150, 16, "rsdb", buffer_documents=3),
    Stage(200, 48, "carry_over"),
)


def test_no_token_is_lost_or_read_twice_when_packing_and_length_change(documents: TokenSet) -> None:
    stream = PlannedStream(documents, STAGES, SEED)
    flat, i = np.zeros(0, dtype=np.int64), 0
    while len(flat) < 2 * documents.tokens:
        flat, i = np.concatenate([flat, read(stream, i, i + 1)]), i + 1
    assert i > STAGES[-1].first_sequence
    for epoch in range(2):
        text = flat[epoch * documents.tokens : (epoch + 1) * documents.tokens]
        assert sorted(text.tolist()) == list(range(documents.tokens))
        owners = np.searchsorted(np.cumsum(documents.lengths), text, side="right")
        for document in np.unique(owners):
            assert (np.diff(text[owners == document]) == 1).all()


@pytest.mark.parametrize("mixed", [False, True])
def test_resumed_at_random_positions_across_stages_the_rest_is_the_same(documents: TokenSet, mixed: bool) -> None:
    shares = [(0.5, 0.25, 0.25), None, (0.1, 0.1, 0.8), (0.1, 0.1, 0.8), (1.0, 0.0, 0.0), None]
    stages = [
        Stage(s.first_sequence * 4, s.length, s.packing, s.masked, s.buffer_documents, share if mixed else None)
        for s, share in zip(STAGES, shares, strict=True)
    ]
    whole = PlannedStream(documents, stages, SEED)
    reference = [whole.sequence(i) for i in range(1000)]
    for position in np.random.default_rng(2).integers(0, 950, 25).tolist():
        state = json.loads(json.dumps(whole.state(position)))
        resumed = PlannedStream(documents, stages, SEED, state)
        assert json.loads(json.dumps(PlannedStream(documents, stages, SEED).state(position))) == state
        for i in range(position, position + 40):
            for ours, expected in zip(resumed.sequence(i), reference[i], strict=True):
                assert (ours == expected).all()


def test_best_fit_cuts_only_documents_longer_than_a_sequence_and_pads_little(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    lengths = np.maximum(1, rng.lognormal(4, 1.0, 3000)).astype(int)
    documents, length = numbered(tmp_path / "set", lengths.tolist()), 256
    stream = PlannedStream(documents, [Stage(0, length, "best_fit")], SEED)
    pieces, tokens, i = Counter[int](), 0, 0
    while tokens < documents.tokens:
        row = stream.segments(i)
        pieces.update(segment.document for segment in row)
        tokens, i = tokens + sum(segment.take for segment in row), i + 1
    assert tokens == documents.tokens
    assert all(pieces[d] == -(-n // length) for d, n in enumerate(lengths.tolist()))
    assert i * length < 1.005 * documents.tokens


def test_best_fit_never_does_worse_than_first_fit_decreasing(tmp_path: Path) -> None:
    """The bound of both is 11/9 of the least number of bins; here they are counted against each other."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(20, 100, 500).tolist()
    documents = numbered(tmp_path / "set", lengths)
    stream, tokens, ours = PlannedStream(documents, [Stage(0, 128, "best_fit")], SEED), 0, 0
    while tokens < documents.tokens:
        tokens, ours = tokens + sum(segment.take for segment in stream.segments(ours)), ours + 1
    room: list[int] = []
    for size in sorted(lengths, reverse=True):
        place = next((i for i, free in enumerate(room) if free >= size), None)
        if place is None:
            room.append(128 - size)
        else:
            room[place] -= size
    assert ours <= len(room)


def test_padding_is_marked_and_never_a_target(documents: TokenSet) -> None:
    for masked in (True, False):
        stream = PlannedStream(documents, [Stage(0, 100, "best_fit", masked)], SEED)
        padded = 0
        for i in range(200):
            tokens, targets, ids = stream.sequence(i)
            used = int((ids >= 0).sum())
            padded += 100 - used
            assert (ids[used:] == -1).all()
            assert (targets[used:] == -1).all()
            assert masked or (ids[:used] == 0).all()
            assert not masked or ((targets[:used] == tokens[:used] + 1) | (targets[:used] == -1)).all()
        assert padded > 0
        assert stream.needs_ids(0)
