"""Who moves which parameter, and optimizer state that survives a round trip bit for bit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.model.shapes import random_tokens, small_config, small_model
from trine.errors import BadInput
from trine.optim.config import AdamWConfig, MuonConfig, OptimConfig, ScheduleConfig
from trine.optim.groups import build_optimizers, clip_gradients, optimizer_of, outer_names
from trine.optim.schedule import check_schedule, lr_factor


def test_every_parameter_has_the_optimizer_its_place_calls_for() -> None:
    model, config = small_model(), OptimConfig()
    kinds = {name: optimizer_of(name, p, config, outer_names(model)) for name, p in model.named_parameters()}
    adamw = {name for name, kind in kinds.items() if kind == "adamw"}
    expected = {
        name
        for name in kinds
        if name in ("model.embed_tokens.weight", "lm_head.weight") or "norm" in name or "router" in name
    }
    assert adamw == expected
    assert kinds["model.layers.1.mlp.experts.gate_up_proj"] == "muon"
    switched = OptimConfig(router="muon")
    router = "model.layers.1.mlp.router.gate.weight"
    assert optimizer_of(router, dict(model.named_parameters())[router], switched, outer_names(model)) == "muon"
    plain = OptimConfig(matrices="adamw")
    assert {optimizer_of(n, p, plain, outer_names(model)) for n, p in model.named_parameters()} == {"adamw"}


def train(model: torch.nn.Module, optimizers, steps: int) -> None:
    for step in range(steps):
        optimizers.zero_grad()
        model(random_tokens(2, 12, seed=step)).square().mean().backward()
        optimizers.step(0.5)


def test_state_round_trip_is_exact() -> None:
    config = OptimConfig(adamw=AdamWConfig(weight_decay=0.1))
    model, twin = small_model(), small_model()
    optimizers = build_optimizers(model, config)
    train(model, optimizers, 3)
    twin.load_state_dict(model.state_dict())
    restored = build_optimizers(twin, config)
    restored.load_state_tensors(optimizers.state_tensors())
    for one, other in ((model, optimizers), (twin, restored)):
        train(one, other, 2)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_foreign_state_is_refused() -> None:
    optimizers = build_optimizers(small_model(), OptimConfig())
    with pytest.raises(BadInput, match="no parameter is named"):
        optimizers.load_state_tensors({"model.layers.9.nothing.momentum": torch.zeros(1)})
    with pytest.raises(BadInput, match="has shape"):
        optimizers.load_state_tensors({"model.norm.weight.exp_avg": torch.zeros(7)})


def test_adamw_equals_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OptimConfig(matrices="adamw", adamw=AdamWConfig(lr=0.01, weight_decay=0.1))
    model, twin = small_model(small_config()), small_model(small_config())
    optimizers = build_optimizers(model, config)
    decays = [p for p in twin.parameters() if p.dim() >= 2]
    plain = [p for p in twin.parameters() if p.dim() < 2]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    for _ in range(3):
        for one in (model, twin):
            one.zero_grad()
            one(random_tokens(2, 12)).square().mean().backward()
        optimizers.step(1.0)
        reference.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_clipping_returns_the_norm_before_and_scales_to_the_limit() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    norm = float(clip_gradients(parameters, 1.0))
    assert norm == pytest.approx((7 * 4) ** 0.5)
    after = sum(float(p.grad.square().sum()) for p in parameters if p.grad is not None) ** 0.5
    assert after == pytest.approx(1.0, rel=1e-5)
    assert float(clip_gradients(parameters, None)) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("decay", "middle"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - 0.5**0.5)], ids=["linear", "cosine", "sqrt"]
)
def test_schedule_shape(decay: str, middle: float) -> None:
    config = ScheduleConfig.model_validate({"warmup_steps": 10, "decay_steps": 20, "decay": decay, "final_ratio": 0.1})
    factors = [lr_factor(step, 100, config) for step in range(1, 101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:80] == [1.0] * 71
    assert factors[89] == pytest.approx(0.1 + 0.9 * middle)
    assert factors[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[79:]))


def test_default_decay_is_a_fifth_and_a_schedule_must_fit() -> None:
    assert lr_factor(80, 100, ScheduleConfig()) == 1.0
    assert lr_factor(100, 100, ScheduleConfig()) == 0.0
    with pytest.raises(BadInput, match=r"exceed train\.steps 10"):
        check_schedule(10, ScheduleConfig(warmup_steps=6, decay_steps=5))


def test_muon_config_limits() -> None:
    with pytest.raises(ValueError, match="less than 1"):
        MuonConfig(momentum=1.0)
