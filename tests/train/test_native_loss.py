"""The loss kernels against cross-entropy in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trine.train.loss import chunked_cross_entropy
from trine.train.native import native_loss_applies

pytestmark = pytest.mark.skipif(
    not native_loss_applies(torch.zeros(1, 32).bfloat16(), torch.zeros(32, 32)),
    reason="no bf16 products, or no C compiler",
)

CASES = [(1, 32, 32, 1024, 0.0), (37, 64, 96, 20, 1e-3), (130, 32, 160, 64, 0.0), (200, 96, 64, 1000, 1e-2)]
"""Tokens, width, vocabulary, chunk, z-loss."""


def case(tokens: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(0, vocabulary, (tokens,))
    targets[2::5] = -1
    return torch.randn(tokens, width).bfloat16(), torch.randn(vocabulary, width) / 4, targets


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, z_loss: float, divisor: float) -> list[Tensor]:
    """Loss, both sums and both gradients in float64, of a head rounded to bf16."""
    hidden, weight = hidden.double().requires_grad_(), weight.bfloat16().double().requires_grad_()
    logits = (hidden @ weight.mT)[targets >= 0]
    log_norm = logits.logsumexp(-1)
    ce = (log_norm - logits.gather(1, targets[targets >= 0].unsqueeze(1)).squeeze(1)).sum()
    z = log_norm.square().sum()
    loss = (ce + z_loss * z) / divisor
    loss.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [loss.detach(), ce.detach(), z.detach(), hidden.grad, weight.grad]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("tokens", "width", "vocabulary", "chunk", "z_loss"), CASES)
def test_sums_and_gradients_equal_float64(
    tokens: int, width: int, vocabulary: int, chunk: int, z_loss: float, compiled: bool
) -> None:
    hidden, weight, targets = case(tokens, width, vocabulary)
    expected = reference(hidden, weight, targets, z_loss, 50.0)
    hidden.requires_grad_()
    weight.requires_grad_()
    options = {"chunk": chunk, "z_loss": z_loss, "normalizer": 50.0, "compiled": compiled}
    sums = chunked_cross_entropy(hidden, weight, targets, **options)
    (3 * sums[0]).backward()
    for found, wanted in zip(sums, expected[:3], strict=True):
        assert torch.allclose(found.double(), wanted, rtol=1e-5)
    for grad, wanted in zip((hidden.grad, weight.grad), expected[3:], strict=True):
        assert grad is not None
        assert (grad.double() - 3 * wanted).norm() <= 0.006 * (3 * wanted).norm()
    assert hidden.grad is not None
    assert not hidden.grad[targets < 0].any()


def test_threads_and_chunks_move_no_bit_of_the_loss() -> None:
    hidden, weight, targets = case(300, 64, 96)
    hidden.requires_grad_()
    weight.requires_grad_()
    threads, found = torch.get_num_threads(), []
    for count in (1, 3):
        torch.set_num_threads(count)
        loss, _, _ = chunked_cross_entropy(hidden, weight, targets, chunk=64, z_loss=0.0, normalizer=1.0)
        found.append([loss.detach(), *torch.autograd.grad(loss, (hidden, weight))])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with torch.no_grad():
        alone, _, _ = chunked_cross_entropy(hidden, weight, targets, chunk=1024, z_loss=0.0, normalizer=1.0)
    assert torch.equal(alone, found[0][0])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_frozen_head_gets_no_gradient_and_moves_no_bit(
    dtype: torch.dtype, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr("trine.train.loss.native_loss_applies", lambda *_: False)
    hidden, weight, targets = case(130, 64, 96)
    hidden.requires_grad_()
    found = []
    for head in (weight.clone().requires_grad_(), weight.to(dtype)):
        loss, *_ = chunked_cross_entropy(hidden, head, targets, chunk=64, z_loss=0.01, normalizer=50.0)
        inputs = (hidden, head) if head.requires_grad else (hidden,)
        found.append([loss.detach(), torch.autograd.grad(loss, inputs)[0]])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_no_targets_give_zero() -> None:
    hidden, weight, targets = case(10, 32, 32)
    hidden.requires_grad_()
    loss, ce, z = chunked_cross_entropy(
        hidden, weight, torch.full_like(targets, -1), chunk=64, z_loss=0.1, normalizer=1.0
    )
    loss.backward()
    assert (float(loss), float(ce), float(z)) == (0.0, 0.0, 0.0)
    assert hidden.grad is not None
    assert not hidden.grad.any()
