"""The norm against float64, by torch and by the kernel."""

from __future__ import annotations

import pytest
import torch

from trine.model.norm import RMSNorm


def reference(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return wide / (wide.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.detach().double()


@pytest.mark.parametrize("gain", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 64), (4100, 64), (257, 2048), (20000, 40)], ids=str)
def test_bf16_rows_are_the_float64_norm_rounded_once(shape: tuple[int, ...], gain: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(shape[-1], 1e-5).to(gain)
    torch.nn.init.normal_(norm.weight, mean=1)
    x = 3 * torch.randn(shape).bfloat16()
    with torch.no_grad():
        found = norm(x)
    expected = reference(norm, x)
    assert found.dtype == torch.bfloat16
    assert torch.all((found.double() - expected).abs() <= 2**-8 * expected.abs() * 1.001)
    torch.testing.assert_close(norm(x).detach(), found, rtol=2**-7, atol=0)


def test_a_view_that_is_not_contiguous_and_one_that_wants_gradients() -> None:
    norm, x = RMSNorm(64, 1e-5), torch.randn(64, 5000).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(norm(x.t()), norm(x.t().contiguous()), rtol=0, atol=0)
    norm(x.t()).float().sum().backward()
    assert norm.weight.grad is not None
