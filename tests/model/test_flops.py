"""Counted arithmetic against torch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.model.shapes import random_tokens, small_config, small_model
from tests.model.test_causal import KINDS, opened, write_peer
from trine.model.afmoe import Afmoe
from trine.model.flops import forward_flops, training_flops
from trine.train.freeze import Trained, freeze


def _forward(x: Any, trained: Any, frozen: Any, where: Any, counts: Any, **_: Any) -> int:
    return 2 * x[0] * trained[2] * trained[1] * where[0] // counts[0]


def _backward(grad: Any, x: Any, trained: Any, frozen: Any, where: Any, counts: Any, **_: Any) -> int:
    return _forward(x, trained, frozen, where, counts) * (where[0] + trained[0]) // where[0]


GROUPED: dict[Any, Any] = {
    torch.ops.trine.grouped_linear: _forward,
    torch.ops.trine.grouped_linear_backward: _backward,
}
"""Operations of our grouped products, by shapes; of a split stack, the same part of every expert being trained."""


@pytest.mark.parametrize("length", [1, 5, 12])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "num_dense_layers": 4}], ids=["moe", "dense"])
def test_forward_and_backward_are_what_torch_counts_less_the_masked_pairs(
    length: int, changes: dict[str, object]
) -> None:
    config = small_config(sliding_window=7, **changes)
    model = small_model(config).double().eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=GROUPED) as forward:
        logits = model(random_tokens(3, length))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=GROUPED) as backward:
        logits.sum().backward()
    masked = 0
    for kind in config.layers():
        reach = 7 if kind == "sliding_attention" else length
        masked += sum(not 0 <= q - k < reach for q in range(length) for k in range(length))
    unseen = 4 * config.num_attention_heads * config.head_dim * masked
    assert 3 * length * forward_flops(model, length) == forward.get_total_flops() - 3 * unseen
    both = forward.get_total_flops() + backward.get_total_flops() - 9 * unseen
    assert 3 * length * training_flops(model, length) == both


def test_frozen_weights_are_left_out_as_torch_leaves_them_out() -> None:
    config, length = small_config(sliding_window=12), 12
    model = small_model(config).train()
    names = {"model.embed_tokens.weight", "model.layers.2.self_attn.o_proj.weight", "model.norm.weight"}
    up = {"model.layers.3.mlp.experts.gate_up_proj": (False, True) * config.num_experts}
    freeze(model, Trained(frozenset(names), up))
    masked = config.num_hidden_layers * length * (length - 1) // 2
    unseen = 3 * 4 * config.num_attention_heads * config.head_dim * masked
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=GROUPED) as counted:
        model(random_tokens(1, length)).sum().backward()
    assert length * training_flops(model, length) == counted.get_total_flops() - unseen
    assert training_flops(model, length) < 0.75 * 3 * forward_flops(model, length)


def test_presets_are_counted_without_memory() -> None:
    with torch.device("meta"):
        large = Afmoe(small_config(preset="large", vocab_size=200192))
    assert forward_flops(large, 8192) > 0


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_dense_model_of_transformers_is_what_torch_counts_less_the_masked_pairs(kind: str, tmp_path: Path) -> None:
    model = opened(write_peer(tmp_path / "peer", kind))
    model.peer.set_attn_implementation("eager")
    length, config = 6, model.config
    with FlopCounterMode(display=False) as counted:
        model(torch.zeros(1, length, dtype=torch.long))
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    window = getattr(config, "sliding_window", None) or length
    masked = sum(not 0 <= q - k < window for q in range(length) for k in range(length))
    unseen = 4 * (config.num_attention_heads * head_dim) * masked * config.num_hidden_layers
    assert length * forward_flops(model, length) == counted.get_total_flops() - unseen
