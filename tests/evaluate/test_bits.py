"""Bits per byte against its definition, written out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.model.shapes import small_model
from tests.tokens import write_tokens
from trine.data.loader import eval_batches
from trine.data.shards import TokenShards
from trine.evaluate.bits import bits_per_byte, token_nll


@pytest.mark.parametrize("limit", [50, 10_000])
def test_equals_the_definition_on_a_whole_set(tmp_path: Path, limit: int) -> None:
    shards = TokenShards(write_tokens(tmp_path / "tokens"))
    heldout = shards.sets["heldout"]
    model = small_model().eval()
    rows = eval_batches(heldout, 16, 3, limit, masked=False)
    result = bits_per_byte(model, rows, shards.token_bytes, chunk=7)
    text = [int(t) for i, n in enumerate(heldout.lengths) for t in heldout.read(i, 0, int(n))][:limit]
    bits, size = 0.0, 0
    for begin in range(0, len(text) - 1, 16):
        inputs = torch.tensor([text[begin : begin + 16]])
        log_p = model(inputs).log_softmax(-1)[0]
        for offset, target in enumerate(text[begin + 1 : begin + 17]):
            bits -= float(log_p[offset, target].detach()) / math.log(2)
            size += int(shards.token_bytes[target])
    assert result.tokens == len(text) - 1
    assert result.bytes == size
    assert result.bits_per_byte == pytest.approx(bits / size, rel=1e-5)


def test_chunks_change_nothing() -> None:
    hidden, weight = torch.randn(20, 8), torch.randn(30, 8)
    targets = torch.randint(0, 30, (20,))
    whole = token_nll(hidden, weight, targets, 20)
    assert torch.allclose(token_nll(hidden, weight, targets, 3), whole)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.mT, targets, reduction="none")
    assert torch.allclose(whole.float(), expected, atol=1e-5)


def test_no_bytes_is_not_a_number() -> None:
    result = bits_per_byte(small_model(), [], torch.ones(97), 8)
    assert math.isnan(result.bits_per_byte)
