"""Names of stacked and per-expert tensors."""

from __future__ import annotations

import torch

from tests.model.shapes import small_model
from trine.weights.names import hub_parts, is_stacked, parse


def test_parts_cover_a_stacked_tensor_once() -> None:
    for name, parameter in small_model().named_parameters():
        parts = hub_parts(name, tuple(parameter.shape))
        covered = torch.zeros(parameter.shape)
        for part in parts:
            assert covered[part.place].shape == part.shape
            covered[part.place] += 1
        assert (covered == 1).all(), name
        assert (len(parts) > 1) == is_stacked(name)


def test_gate_comes_before_up() -> None:
    first, second, *_ = hub_parts("model.layers.3.mlp.experts.gate_up_proj", (2, 8, 4))
    assert first == ("model.layers.3.mlp.experts.0.gate_proj.weight", (4, 4), (0, slice(0, 4)))
    assert second == ("model.layers.3.mlp.experts.0.up_proj.weight", (4, 4), (0, slice(4, 8)))


def test_parse() -> None:
    assert parse("model.layers.3.mlp.experts.7.up_proj.weight") == (3, "mlp.experts.up_proj", 7)
    assert parse("model.layers.12.self_attn.q_proj.weight") == (12, "self_attn.q_proj", None)
    assert parse("model.embed_tokens.weight") == (None, "model.embed_tokens", None)
