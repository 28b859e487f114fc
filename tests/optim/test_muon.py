"""Newton-Schulz against the polar factor by SVD in float64; Muon against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trine.optim.config import MuonConfig
from trine.optim.muon import Muon, learning_rate_scale
from trine.optim.newton_schulz import coefficients, orthogonalize

SIZES = [(64, 64), (128, 32), (32, 128), (96, 40), (1, 16), (16, 1)]


def polar(matrix: Tensor) -> Tensor:
    """U V^T by singular value decomposition, float64."""
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ vh


def with_spectrum(rows: int, columns: int, smallest: float, seed: int) -> Tensor:
    """A matrix whose singular values fall geometrically from 1 to `smallest`."""
    generator = torch.Generator().manual_seed(seed)
    short = min(rows, columns)
    u, _ = torch.linalg.qr(torch.randn(rows, short, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, short, generator=generator, dtype=torch.float64))
    values = torch.logspace(0, math.log10(smallest), short, dtype=torch.float64)
    return (u * values) @ v.mT


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_float64_iteration_reaches_the_polar_factor(rows: int, columns: int) -> None:
    matrix = with_spectrum(rows, columns, 0.05, seed=1)
    difference = torch.linalg.matrix_norm(orthogonalize(matrix, 5) - polar(matrix), ord=2)
    assert difference < 0.02
    assert torch.linalg.matrix_norm(orthogonalize(matrix, 8) - polar(matrix), ord=2) < 0.02


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_bf16_result_equals_the_polar_factor_within_bf16_tolerance(rows: int, columns: int) -> None:
    matrix = with_spectrum(rows, columns, 0.05, seed=2).float()
    ours, expected = orthogonalize(matrix, 5).double(), polar(matrix)
    assert ours.shape == matrix.shape
    assert torch.linalg.matrix_norm(ours - expected, ord=2) < 0.05
    assert torch.linalg.matrix_norm(ours - expected) / torch.linalg.matrix_norm(expected) < 0.02


def test_stacks_are_orthogonalised_matrix_by_matrix() -> None:
    stack = torch.stack([with_spectrum(24, 40, 0.1, seed).float() * 10.0**seed for seed in range(-3, 4)])
    together = orthogonalize(stack.view(7, 1, 24, 40))
    assert together.shape == (7, 1, 24, 40)
    for one, matrix in zip(together[:, 0], stack, strict=True):
        assert torch.allclose(one, orthogonalize(matrix), atol=2e-2)
        assert torch.linalg.matrix_norm(one.double() - polar(matrix), ord=2) < 0.05


def test_scale_and_zero() -> None:
    matrix = with_spectrum(32, 16, 0.1, seed=3).float()
    assert torch.allclose(orthogonalize(matrix * 1e-12), orthogonalize(matrix), atol=2e-2)
    assert not orthogonalize(torch.zeros(8, 4)).any()


def test_no_singular_value_grows_beyond_the_fit() -> None:
    """Each iteration's polynomial stays near [0, 1] also below the interval it was fitted on."""
    x = torch.logspace(-6, 0, 2000, dtype=torch.float64)
    for a, b, c in coefficients(5):
        x = a * x + b * x**3 + c * x**5
    assert x.min() >= 0
    assert x.max() < 1.02


@pytest.mark.parametrize("rule", ["spectral", "rms"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_three_steps_equal_the_formula(rule: str, nesterov: bool) -> None:
    torch.manual_seed(0)
    config = MuonConfig.model_validate({"lr": 0.05, "lr_rule": rule, "nesterov": nesterov, "weight_decay": 0.1})
    weight = nn.Parameter(torch.randn(48, 16))
    expected, momentum = weight.detach().double(), torch.zeros(48, 16, dtype=torch.float64)
    optimizer = Muon([weight], config)
    scale = math.sqrt(max(1, 48 / 16)) if rule == "spectral" else 0.2 * math.sqrt(48)
    for _ in range(3):
        weight.grad = with_spectrum(48, 16, 0.1, seed=int(torch.randint(100, ()))).float()
        optimizer.step()
        gradient = weight.grad.double()
        momentum = 0.95 * momentum + gradient
        update = polar(gradient + 0.95 * momentum if nesterov else momentum)
        expected = expected * (1 - 0.05 * 0.1) - 0.05 * scale * update
    moved = (expected - weight.detach().double()).abs().max() / (0.05 * scale)
    assert moved < 0.05


def test_gate_and_up_of_each_expert_are_their_own_matrices() -> None:
    experts, gate_rows = 3, 8
    stack = nn.Parameter(torch.zeros(experts, 2 * gate_rows, 16))
    optimizer = Muon([{"params": [stack], "split": 2}], MuonConfig(lr=1.0, weight_decay=0.0))
    halves = torch.stack([with_spectrum(gate_rows, 16, 0.2, seed) for seed in range(2 * experts)]).float()
    stack.grad = halves.view(experts, 2 * gate_rows, 16) * torch.tensor([1.0, 100.0, 0.01]).view(3, 1, 1)
    optimizer.step()
    for got, half in zip(-stack.detach().view(-1, gate_rows, 16), halves, strict=True):
        assert torch.linalg.matrix_norm(got.double() - polar(half), ord=2) < 0.05


def test_learning_rate_rules() -> None:
    assert learning_rate_scale(64, 16, "spectral") == 2.0
    assert learning_rate_scale(16, 64, "spectral") == 1.0
    assert learning_rate_scale(16, 100, "rms") == pytest.approx(2.0)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([weight], MuonConfig())
    optimizer.step()
    assert (weight == 1).all()
    assert not optimizer.state[weight]
