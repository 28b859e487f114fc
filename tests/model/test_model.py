"""Shapes of the report, initial weights, and attention's fast form against its obvious one."""

from __future__ import annotations

import math

import pytest
import torch

from tests.model.shapes import random_tokens, small_config, small_model
from trine.errors import BadInput
from trine.model.afmoe import Afmoe
from trine.model.attention import plan_attention
from trine.model.config import PRESETS, ModelConfig
from trine.model.flops import count_parameters
from trine.model.init import init_model


@pytest.mark.parametrize(
    ("preset", "total", "active", "blocks"),
    [("nano", 6.120, 1.024, 0.614), ("mini", 26.124, 3.475, 2.655), ("large", 398.635, 13.37, 12.14)],
)
def test_presets_have_the_reported_sizes(preset: str, total: float, active: float, blocks: float) -> None:
    counts = count_parameters(ModelConfig.model_validate({"preset": preset}))
    assert counts.total / 1e9 == pytest.approx(total, abs=5e-4)
    assert counts.active / 1e9 == pytest.approx(active, abs=5e-3)
    assert counts.active_blocks / 1e9 == pytest.approx(blocks, abs=5e-3)


def test_counts_equal_a_real_model() -> None:
    model = small_model()
    counts = count_parameters(model.config)
    assert counts.total == sum(p.numel() for p in model.parameters())
    every = small_config(num_experts_per_tok=8)
    assert count_parameters(every).active == count_parameters(every).total


def test_preset_keys_can_be_replaced() -> None:
    config = ModelConfig.model_validate({"preset": "mini", "num_hidden_layers": 8})
    assert (config.num_hidden_layers, config.hidden_size) == (8, PRESETS["mini"]["hidden_size"])
    assert config.layers() == (("sliding_attention",) * 3 + ("full_attention",)) * 2


def test_initial_weights_are_those_of_the_report() -> None:
    model = Afmoe(small_config(hidden_size=64, vocab_size=512, num_experts=16, moe_intermediate_size=64))
    init_model(model, seed=3)
    sigma = 0.5 / math.sqrt(64)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            expected = 0.5 if "post_" in name else 1.0
            assert torch.equal(parameter, torch.full_like(parameter, expected)), name
        else:
            assert parameter.abs().max() <= 3 * sigma, name
            assert float(parameter.std()) == pytest.approx(sigma * 0.9866, rel=0.1), name
    before = {name: p.clone() for name, p in model.named_parameters()}
    init_model(model, seed=4)
    assert not torch.equal(before["lm_head.weight"], model.lm_head.weight)
    init_model(model, seed=3)
    assert torch.equal(before["lm_head.weight"], model.lm_head.weight)


@pytest.mark.parametrize("length", [17, 18, 31, 64])
@pytest.mark.parametrize("packed", [False, True])
def test_blocked_window_attention_equals_the_masked_form(
    length: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(small_config(layer_types=("sliding_attention",) * 4)).double().train()
    tokens = random_tokens(2, length)
    ids = (torch.arange(length) // 7).expand(2, -1) if packed else None
    assert plan_attention(model.config, length, ids, tokens.device, torch.float64).blocked
    weight = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    fast = model(tokens, ids)
    gradient = torch.autograd.grad(fast.square().sum(), weight)[0]

    def plain(query, key, value, window, mask):
        size = query.shape[2]
        distance = torch.arange(size).unsqueeze(1) - torch.arange(size).unsqueeze(0)
        seen = ((distance >= 0) & (distance < window))[None, None]
        if ids is not None:
            seen = seen & (ids.unsqueeze(2) == ids.unsqueeze(1)).unsqueeze(1)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)

    monkeypatch.setattr("trine.model.attention.blocked_attention", plain)
    slow = model(tokens, ids)
    reference = torch.autograd.grad(slow.square().sum(), weight)[0]
    assert torch.allclose(fast, slow, rtol=1e-10, atol=1e-12)
    assert torch.allclose(gradient, reference, rtol=1e-8, atol=1e-10)


def test_padding_anywhere_gives_finite_values() -> None:
    model = small_model().train()
    ids = torch.full((2, 20), -1)
    ids[0, 5:9] = 0
    logits = model(random_tokens(2, 20), ids)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_wrong_inputs_say_what_is_expected() -> None:
    model = small_model()
    with pytest.raises(BadInput, match=r"\[batch, length\]"):
        model(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(BadInput, match="must agree"):
        model(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(BadInput, match="vocab_size is not set"):
        Afmoe(ModelConfig())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_fp32_whatever_the_compute_type(dtype: torch.dtype) -> None:
    model = small_model()
    model.compute_dtype = dtype
    assert model(random_tokens(1, 5)).dtype == torch.float32
