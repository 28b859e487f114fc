"""Muon's kernel against its formula in float64 with the polar factor by SVD, and against torch's path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trine.optim import native
from trine.optim.config import MuonConfig
from trine.optim.muon import Muon

_SQUARE = torch.zeros(32, 32)
SHAPES = [(64, 64), (32, 160), (160, 32), (3, 64, 96), (2, 96, 64)]


def parameter(shape: tuple[int, ...]) -> torch.nn.Parameter:
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(shape))


def gradient(shape: tuple[int, ...], seed: int) -> Tensor:
    """Matrices whose singular values lie between 2e-4 and 1e-3."""
    torch.manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    return u * torch.linspace(1e-3, 2e-4, u.shape[-1]) @ vh


if not native.applies(native.Update(_SQUARE, _SQUARE, _SQUARE, 32, 32, 1.0, 1.0)):
    pytest.skip("no bf16 products, or no C compiler", allow_module_level=True)


def steps(made: torch.nn.Parameter, count: int, split: int = 1) -> list[Tensor]:
    """Weight and momentum after `count` steps of changing gradients."""
    muon = Muon([{"params": [made], "split": split}], MuonConfig(lr=0.1))
    for i in range(count):
        made.grad = gradient(made.shape, i)
        muon.step()
    return [made.detach(), muon.state[made]["momentum"]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_step_equals_the_formula_in_float64(shape: tuple[int, ...]) -> None:
    made = parameter(shape)
    before, config = made.detach().double(), MuonConfig(lr=0.1)
    weight, momentum = steps(made, 1)
    given = gradient(shape, 0).double()
    u, _, vh = torch.linalg.svd(given, full_matrices=False)
    scale = max(1.0, shape[-2] / shape[-1]) ** 0.5
    expected = before * (1 - 0.1 * config.weight_decay) - 0.1 * scale * (u @ vh)
    change, wanted = weight.double() - before, expected - before
    assert torch.allclose(momentum.double(), given, atol=1e-9)
    assert (change - wanted).norm() <= 0.02 * wanted.norm()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("split", [1, 2])
def test_steps_equal_torch_s_path(shape: tuple[int, ...], split: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if shape[-2] // split % 32:
        pytest.skip("not a multiple of 32")
    ours = steps(parameter(shape), 3, split)
    monkeypatch.setattr("trine.optim.muon.applies", lambda one: False)
    theirs = steps(parameter(shape), 3, split)
    assert torch.allclose(ours[1], theirs[1], rtol=1e-5, atol=1e-9)
    moved = theirs[0] - parameter(shape).detach()
    assert (ours[0] - theirs[0]).norm() <= 0.02 * moved.norm()


def test_threads_move_no_bit_and_zero_stays_zero() -> None:
    threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        found.append(steps(parameter((5, 64, 96)), 2))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    still = torch.nn.Parameter(torch.ones(32, 64))
    still.grad = torch.zeros(32, 64)
    Muon([still], MuonConfig(lr=0.1, weight_decay=0)).step()
    assert torch.equal(still, torch.ones(32, 64))
