"""Shards, packing and batches: exact to the token, the same for any number of workers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tokens import write_tokens
from trine.data.loader import Batch, batches, eval_batches
from trine.data.pack import TokenStream
from trine.data.shards import ShardWriter, TokenShards, token_dtype, write_index
from trine.errors import BadInput

LENGTH = 32


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    return TokenShards(write_tokens(tmp_path / "tokens"))


def documents_of(shards: TokenShards, name: str) -> list[list[int]]:
    documents = shards.sets[name]
    return [documents.read(i, 0, int(n)).tolist() for i, n in enumerate(documents.lengths)]


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_what_is_written_is_read_whatever_the_shard_size(tmp_path: Path, vocabulary: int, dtype: type) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, vocabulary, n) for n in (5, 1, 900, 3, 64, 64, 2)]
    with ShardWriter(tmp_path, "train", token_dtype(vocabulary), 128) as writer:
        for document in documents:
            writer.add(document, 7)
    write_index(tmp_path, {"train": writer.summary()}, np.ones(vocabulary, np.uint16), 0, 1, "x")
    shards = TokenShards(tmp_path)
    assert shards.dtype == dtype
    assert documents_of(shards, "train") == [document.tolist() for document in documents]
    assert len(list(tmp_path.glob("train-*.bin"))) == 4
    assert shards.sets["train"].tokens == sum(map(len, documents))
    assert shards.sets["train"].bytes == 7 * len(documents)


def test_damage_is_named(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "tokens")
    file = sorted(folder.glob("train-*.bin"))[0]
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(BadInput, match=file.name):
        TokenShards(folder)
    file.unlink()
    with pytest.raises(BadInput, match="missing"):
        TokenShards(folder)
    (folder / "index.json").write_text("{}")
    with pytest.raises(BadInput, match="not the index"):
        TokenShards(folder)


def test_an_epoch_predicts_every_token_once(shards: TokenShards) -> None:
    """Laid end to end, the sequences are the documents in some order, none cut short, none twice."""
    stream = TokenStream(shards.sets["train"], LENGTH, seed=3, masked=False)
    total = shards.sets["train"].tokens
    flat: list[int] = []
    for i in range(2 * total // LENGTH + 1):
        tokens, targets, _ = stream.sequence(i)
        assert tokens[1:].tolist() == targets[:-1].tolist()
        flat += tokens.tolist()
    for epoch in range(2):
        text = flat[epoch * total : (epoch + 1) * total]
        found, begin = [], 0
        for place, token in enumerate(text):
            if token == 1:
                found.append(text[begin : place + 1])
                begin = place + 1
        assert sorted(found) == sorted(documents_of(shards, "train"))
    assert flat[:total] != flat[total : 2 * total]


def test_masked_targets_never_cross_into_the_next_document(shards: TokenShards) -> None:
    stream = TokenStream(shards.sets["train"], LENGTH, seed=3, masked=True)
    for i in range(50):
        tokens, targets, ids = stream.sequence(i)
        assert ids[0] == 0
        assert (np.diff(ids) >= 0).all()
        assert ((tokens == 1) <= (targets == -1)).all()
        assert ((targets == -1) <= (tokens == 1)).all()
        assert (np.flatnonzero(np.diff(ids)) == np.flatnonzero(tokens[:-1] == 1)).all()


def equal(one: Batch, other: Batch) -> bool:
    assert one.document_ids is not None
    assert other.document_ids is not None
    return all(
        torch.equal(a, b)
        for a, b in ((one.tokens, other.tokens), (one.targets, other.targets), (one.document_ids, other.document_ids))
    )


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_any_number_of_workers_and_any_start_give_the_same_batches(shards: TokenShards, workers: int) -> None:
    stream = TokenStream(shards.sets["train"], LENGTH, seed=0)
    reference = list(islice(batches(stream, 0, 4, 0), 12))
    fresh = TokenStream(shards.sets["train"], LENGTH, seed=0)
    again = list(islice(batches(fresh, 0, 4, workers), 12))
    assert all(equal(a, b) for a, b in zip(reference, again, strict=True))
    resumed = list(islice(batches(TokenStream(shards.sets["train"], LENGTH, 0), 5 * 4, 4, workers), 7))
    assert all(equal(a, b) for a, b in zip(reference[5:], resumed, strict=True))


def test_seeds_differ(shards: TokenShards) -> None:
    one, other = (TokenStream(shards.sets["train"], LENGTH, seed).sequence(0)[0] for seed in (0, 1))
    assert one.tolist() != other.tolist()


@pytest.mark.parametrize("limit", [10_000, 100, 64])
def test_evaluation_reads_the_beginning_once(shards: TokenShards, limit: int) -> None:
    stored = [token for document in documents_of(shards, "heldout") for token in document][:limit]
    predicted = []
    for batch in eval_batches(shards.sets["heldout"], LENGTH, 4, limit, masked=False):
        assert batch.document_ids is None or (batch.document_ids[batch.targets >= 0] >= 0).all()
        predicted += batch.targets[batch.targets >= 0].tolist()
    assert predicted == stored[1:]


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", token_dtype(10), 128) as writer:
        pass
    write_index(tmp_path, {"train": writer.summary()}, np.ones(10, np.uint16), None, None, "x")
    with pytest.raises(BadInput, match="empty"):
        TokenStream(TokenShards(tmp_path).sets["train"], 8, 0)
