"""Cross-entropy that never holds the logits of more than one chunk of tokens.

The gradients of hidden states and head are made chunk by chunk in the forward pass, while the chunk's logits
exist, and only scaled in the backward pass. Memory is chunk x V instead of N x V; each logit is computed once.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trine.train.native import NativeCrossEntropy, native_loss_applies


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk: int,
    z_loss: float,
    normalizer: float | Tensor,
    compiled: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and its parts for N positions.

    `hidden` [N, D] in the compute type, `weight` [V, D] (cast to it), `targets` [N] int64 with -1 ignored.
    loss = (sum of cross-entropy + z_loss * sum of logsumexp^2) / normalizer, fp32 scalar with gradient.
    Also returns both sums, fp32, detached. Softmax and sums are fp32 (fp64 for fp64 input).
    `compiled` makes the elementwise part of whole chunks one compiled loop. `normalizer` may be a scalar on the device:
    on CUDA nothing here waits for it.
    """
    if isinstance(normalizer, Tensor):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        normalizer = normalizer.to(wide) if _queued(hidden.device) else float(normalizer)
    if native_loss_applies(hidden, weight):
        loss, ce_sum, z_sum = NativeCrossEntropy.apply(hidden, weight, targets, chunk, z_loss, normalizer)
        return loss, ce_sum.detach(), z_sum.detach()
    loss, ce_sum, z_sum = _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk, z_loss, normalizer, compiled)
    return loss, ce_sum.detach(), z_sum.detach()


def _softmax(logits: Tensor, target: Tensor, z_loss: float, share: Tensor) -> tuple[Tensor, ...]:
    """Of logits [n, V], targets [n, 1] and each row's share in the loss [n, 1]: sums and gradient of a chunk.

    Returns the sum of cross-entropy and of logsumexp^2 over rows of non-zero share, the gradient at the target [n, 1],
    and the gradient [n, V] as it is elsewhere: (p_j (1 + 2 z_loss logsumexp) - [j = target]) share.
    """
    logits_wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    top = logits_wide.amax(-1, keepdim=True)
    log_norm = (logits_wide - top).exp().sum(-1, keepdim=True).log() + top
    chosen = logits_wide.gather(1, target)
    counted = (share > 0).to(share.dtype)
    factor = (1 + 2 * z_loss * log_norm) * share
    grad = (logits_wide - log_norm).exp() * factor
    at_target = (chosen - log_norm).exp() * factor - share
    ce, z = ((log_norm - chosen) * counted).sum(), (log_norm.square() * counted).sum()
    return ce, z, at_target.to(logits.dtype), grad.to(logits.dtype)


def _queued(device: torch.device) -> bool:
    """Whether asking `device` for a number means waiting for all it has to do."""
    return device.type == "cuda"


def _rows(targets: Tensor, multiple: int) -> tuple[Tensor | None, Tensor]:
    """The positions to compute, None for all as they are, and a mask of those that count.

    Filled up to a `multiple`, so that one shape is compiled. On CUDA all are computed: leaving some out would wait for
    their number.
    """
    if _queued(targets.device):
        return None, targets >= 0
    rows = (targets >= 0).nonzero().squeeze(1)
    count = rows.numel()
    rows = F.pad(rows, (0, -count % multiple))
    counted = torch.arange(rows.numel(), device=rows.device) < count
    return None if count == targets.numel() == rows.numel() else rows, counted


@cache
def _compiled_softmax() -> Any:
    return torch.compile(_softmax, dynamic=False)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        z_loss: float,
        normalizer: float | Tensor,
        compiled: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        rows, counted = _rows(targets, chunk if compiled else 1)
        used = hidden if rows is None else hidden[rows]
        used_targets = (targets if rows is None else targets[rows]).clamp_min(0).unsqueeze(1)
        share = counted.to(wide).div(normalizer).unsqueeze(1)
        cast = weight.to(hidden.dtype)
        ce_sum, z_sum = hidden.new_zeros((), dtype=wide), hidden.new_zeros((), dtype=wide)
        grad_hidden = torch.empty_like(used) if any(ctx.needs_input_grad[:2]) else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        softmax = _compiled_softmax() if compiled else _softmax
        for begin in range(0, used.shape[0], chunk):
            piece = slice(begin, begin + chunk)
            target = used_targets[piece]
            ce, z, at_target, grad = softmax(used[piece] @ cast.mT, target, z_loss, share[piece])
            ce_sum += ce
            z_sum += z
            if grad_hidden is None:
                continue
            grad.scatter_(1, target, at_target)
            torch.mm(grad, cast, out=grad_hidden[piece])
            if grad_weight is not None:
                grad_weight += grad.mT @ used[piece]
        if rows is not None:
            count = int(counted.sum())
            rows, grad_hidden = rows[:count], None if grad_hidden is None else grad_hidden[:count]
        ctx.save_for_backward(rows, grad_hidden, grad_weight)
        ctx.positions, ctx.weight_dtype = targets.numel(), weight.dtype
        return (ce_sum + z_loss * z_sum) / normalizer, ce_sum, z_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        scaled = grad_hidden * scale.to(grad_hidden.dtype)
        if rows is not None and rows.numel() != ctx.positions:
            spread = scaled.new_zeros((ctx.positions, scaled.shape[1]))
            spread[rows] = scaled
            scaled = spread
        slopes = None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype)
        return scaled, slopes, None, None, None, None, None
