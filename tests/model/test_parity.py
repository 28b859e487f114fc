"""Logits and every gradient against transformers' AfmoeForCausalLM, in fp32, over many shapes and inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.model.shapes import in_transformers, random_tokens, small_config, small_model
from trine.model.afmoe import Afmoe

LOCAL, GLOBAL = "sliding_attention", "full_attention"
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "multi-query": {"num_key_value_heads": 1},
    "one-kv-per-head": {"num_key_value_heads": 4},
    "irregular-layers": {"layer_types": (GLOBAL, LOCAL, LOCAL, GLOBAL)},
    "all-global": {"layer_types": (GLOBAL,) * 4},
    "all-local": {"layer_types": (LOCAL,) * 4},
    "window-beyond-sequence": {"sliding_window": 64},
    "window-of-one": {"sliding_window": 1},
    "window-not-a-divisor": {"sliding_window": 5},
    "no-dense-layer": {"num_dense_layers": 0},
    "three-dense-layers": {"num_dense_layers": 3},
    "two-shared-experts": {"num_shared_experts": 2},
    "tied": {"tie_word_embeddings": True},
    "no-embedding-scale": {"mup_enabled": False},
    "wide-heads": {"head_dim": 16, "rope_theta": 500.0},
    "top-1": {"num_experts_per_tok": 1},
    "every-expert": {"num_experts_per_tok": 8, "route_scale": 2.826},
}
LENGTH = 27


def summed_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")


def assert_close(ours: Tensor, theirs: Tensor, relative: float, what: str) -> None:
    ours, theirs = ours.detach(), theirs.detach()
    scale = float(theirs.abs().max())
    assert scale > 0, f"{what}: the reference is zero, so equality would prove nothing"
    difference = float((ours - theirs).abs().max()) / scale
    assert difference <= relative, f"{what}: relative difference {difference:.1e}"


def assert_same_gradients(model: Afmoe, peer: Any) -> None:
    theirs = {name: p.grad for name, p in peer.named_parameters() if p.grad is not None}
    ours = dict(model.named_parameters())
    assert set(ours) == set(theirs)
    noise = 1e-6 * max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, parameter in ours.items():
        assert parameter.grad is not None
        if theirs[name].abs().max() < noise:  # zero but for rounding, as the router's is for one expert
            assert parameter.grad.abs().max() < noise, name
            continue
        assert_close(parameter.grad, theirs[name], 1e-4, name)


@pytest.mark.parametrize("bias", [0.0, 0.3], ids=["bias-zero", "bias-set"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_and_gradients_equal_transformers(shape: dict[str, Any], bias: float, tmp_path: Path) -> None:
    model = small_model(small_config(**shape), bias=bias).train()
    peer = in_transformers(model, tmp_path / "peer")
    tokens = random_tokens(3, LENGTH)
    ours, theirs = model(tokens), peer(input_ids=tokens, use_cache=False).logits
    assert_close(ours, theirs, 1e-5, "logits")
    summed_loss(ours, tokens).backward()
    summed_loss(theirs, tokens).backward()
    assert_same_gradients(model, peer)


@pytest.mark.parametrize("shape", ["plain", "irregular-layers", "window-beyond-sequence", "window-not-a-divisor"])
def test_padded_rows_equal_transformers(shape: str, tmp_path: Path) -> None:
    model = small_model(small_config(**SHAPES[shape]), bias=0.2).train()
    peer = in_transformers(model, tmp_path / "peer")
    tokens, lengths = random_tokens(3, LENGTH), [LENGTH, 11, 4]
    ids = torch.stack([torch.where(torch.arange(LENGTH) < n, 0, -1) for n in lengths])
    ours = model(tokens, ids)
    theirs = peer(input_ids=tokens, attention_mask=(ids >= 0).long(), use_cache=False).logits
    losses = [torch.zeros(()), torch.zeros(())]
    for row, length in enumerate(lengths):
        assert_close(ours[row, :length], theirs[row, :length], 1e-5, f"row {row}")
        for i, logits in enumerate((ours, theirs)):
            losses[i] = losses[i] + summed_loss(logits[row : row + 1, :length], tokens[row : row + 1, :length])
    losses[0].backward()
    losses[1].backward()
    assert_same_gradients(model, peer)


@pytest.mark.parametrize("shape", ["plain", "all-global", "all-local", "window-not-a-divisor", "tied"])
def test_packed_documents_equal_transformers_one_by_one(shape: str, tmp_path: Path) -> None:
    """Several documents in one row give what each gives alone: attention never crosses."""
    model = small_model(small_config(**SHAPES[shape]), bias=0.2).train()
    peer = in_transformers(model, tmp_path / "peer")
    lengths = [9, 1, 14, 3]
    ids = torch.repeat_interleave(torch.tensor([4, 0, 7, 2]), torch.tensor(lengths)).unsqueeze(0)
    tokens = random_tokens(1, sum(lengths))
    ours = model(tokens, ids)
    losses = [torch.zeros(()), torch.zeros(())]
    begin = 0
    for length in lengths:
        piece = slice(begin, begin + length)
        theirs = peer(input_ids=tokens[:, piece], use_cache=False).logits
        assert_close(ours[:, piece], theirs.detach(), 1e-5, f"document at {begin}")
        losses[0] = losses[0] + summed_loss(ours[:, piece], tokens[:, piece])
        losses[1] = losses[1] + summed_loss(theirs, tokens[:, piece])
        begin += length
    losses[0].backward()
    losses[1].backward()
    assert_same_gradients(model, peer)


def test_a_document_sees_nothing_of_its_neighbours() -> None:
    model = small_model().eval()
    ids = torch.tensor([[0] * 10 + [1] * 10])
    tokens = random_tokens(1, 20)
    changed = tokens.clone()
    changed[:, :10] = (changed[:, :10] + 1) % 97
    assert_close(model(tokens, ids)[:, 10:], model(changed, ids)[:, 10:], 1e-6, "the second document")
    assert (model(tokens)[:, 10:] - model(changed)[:, 10:]).abs().max() > 1e-2
