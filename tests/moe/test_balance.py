"""Selection-bias updates against a float64 formula, and what they do to a skewed router."""

from __future__ import annotations

import math

import pytest
import torch

from trine.moe.balance import sign_update, smebu_update, update_bias
from trine.moe.config import BalanceConfig
from trine.moe.layer import SparseMoE
from trine.moe.stats import max_violation

RATE, BETA, KAPPA = 5e-4, 0.5, 2.0


def smebu_formula(bias: list[float], momentum: list[float], counts: list[int]) -> tuple[list[float], list[float]]:
    """Equations 23-28 of the Trinity Large report, scalar by scalar in Python's float64."""
    mean = sum(counts) / len(counts)
    delta = [RATE * math.tanh(KAPPA * (mean - n) / mean) for n in counts]
    centre = sum(delta) / len(delta)
    momentum = [BETA * m + (1 - BETA) * (d - centre) for m, d in zip(momentum, delta, strict=True)]
    return [b + m for b, m in zip(bias, momentum, strict=True)], momentum


def test_smebu_equals_the_formula_over_many_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    bias, momentum = torch.zeros(16), torch.zeros(16)
    expected = [0.0] * 16, [0.0] * 16
    for _ in range(50):
        counts = torch.randint(0, 400, (16,), generator=generator)
        smebu_update(bias, momentum, counts, RATE, BETA, KAPPA)
        expected = smebu_formula(*expected, counts.tolist())
    assert torch.allclose(bias.double(), torch.tensor(expected[0]).double(), rtol=0, atol=1e-8)
    assert torch.allclose(momentum.double(), torch.tensor(expected[1]).double(), rtol=0, atol=1e-9)
    assert abs(float(bias.sum())) < 1e-6


def test_sign_update_equals_the_formula() -> None:
    generator = torch.Generator().manual_seed(1)
    bias = torch.zeros(8)
    expected = torch.zeros(8, dtype=torch.float64)
    for _ in range(30):
        counts = torch.randint(0, 50, (8,), generator=generator)
        sign_update(bias, counts, 1e-3)
        violation = counts.double().mean() - counts.double()
        expected += 1e-3 * torch.where(violation > 0, 1.0, torch.where(violation < 0, -1.0, 0.0))
        expected -= expected.mean()
    assert torch.allclose(bias.double(), expected, rtol=0, atol=1e-7)


def test_one_step_of_smebu_moves_at_most_half_the_rate() -> None:
    bias, momentum = torch.zeros(4), torch.zeros(4)
    smebu_update(bias, momentum, torch.tensor([1000, 0, 0, 0]), RATE, BETA, KAPPA)
    assert bias[0] < 0 < bias[1]
    assert bias.abs().max() <= RATE


@pytest.mark.parametrize("update", ["smebu", "sign"])
def test_no_tokens_change_nothing(update: str) -> None:
    bias, momentum = torch.zeros(4), torch.zeros(4)
    update_bias(bias, momentum, torch.zeros(4, dtype=torch.int64), BalanceConfig.model_validate({"update": update}))
    assert not bias.any()
    assert not momentum.any()


def test_counts_of_twice_the_batch_change_nothing() -> None:
    counts = torch.tensor([5, 0, 9, 2])
    biases = []
    for factor in (1, 2):
        bias, momentum = torch.zeros(4), torch.zeros(4)
        smebu_update(bias, momentum, counts * factor, RATE, BETA, KAPPA)
        biases.append(bias)
    assert torch.equal(*biases)


@pytest.mark.parametrize(("update", "rate"), [("smebu", 0.01), ("sign", 0.003)])
def test_a_skewed_router_is_flattened_and_stays_flat(update: str, rate: float) -> None:
    """200 steps of fresh tokens through a router whose weights favour few experts: MaxVio falls and stays."""
    torch.manual_seed(0)
    moe = SparseMoE(16, 8, 16, 2, 1, 1.0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(std=0.1)
        moe.router.gate.weight.add_(torch.linspace(0, 0.4, 16).unsqueeze(1))
    config = BalanceConfig.model_validate({"update": update, "rate": rate})
    trace = []
    for _ in range(200):
        x = torch.randn(4, 512, 16) + 0.5
        with torch.no_grad():
            _, stats = moe(x, None, with_loss=False)
        trace.append(float(max_violation(stats.counts_E)))
        moe.update_expert_bias(stats.counts_E, config)
    assert trace[0] > 2, "the router must begin skewed for the test to mean something"
    assert max(trace[100:]) < trace[0] / 4
    assert sum(trace[150:]) <= sum(trace[100:150]) * 1.2
