"""Cross-entropy that never holds the logits of more than one chunk of tokens.

The gradients of hidden states and head are made chunk by chunk in the forward pass, while the chunk's logits
exist, and only scaled in the backward pass. Memory is chunk x V instead of N x V; each logit is computed once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, chunk: int, z_loss: float, normalizer: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and its parts for N positions.

    `hidden` [N, D] in the compute type, `weight` [V, D] (cast to it), `targets` [N] int64 with -1 ignored.
    loss = (sum of cross-entropy + z_loss * sum of logsumexp^2) / normalizer, fp32 scalar with gradient.
    Also returns both sums, fp32, detached. Softmax and sums are fp32 (fp64 for fp64 input).
    """
    loss, ce_sum, z_sum = _ChunkedCrossEntropy.apply(hidden, weight, targets, chunk, z_loss, normalizer)
    return loss, ce_sum.detach(), z_sum.detach()


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        z_loss: float,
        normalizer: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        rows = (targets >= 0).nonzero().squeeze(1)
        used = hidden if rows.numel() == targets.numel() else hidden[rows]
        cast = weight.to(hidden.dtype)
        ce_sum, z_sum = hidden.new_zeros((), dtype=wide), hidden.new_zeros((), dtype=wide)
        with_grad = any(ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(used) if with_grad else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if with_grad else None
        for begin in range(0, rows.numel(), chunk):
            piece = slice(begin, begin + chunk)
            target = targets[rows[piece]].unsqueeze(1)
            logits = (used[piece] @ cast.mT).to(wide)
            log_norm = logits.logsumexp(-1, keepdim=True)
            ce_sum += (log_norm - logits.gather(1, target)).sum()
            z_sum += log_norm.square().sum()
            if grad_hidden is None or grad_weight is None:
                continue
            grad = logits.sub_(log_norm).exp_()
            if z_loss:
                grad *= 1 + 2 * z_loss * log_norm
            grad.scatter_add_(1, target, torch.full_like(target, -1, dtype=wide))
            grad = (grad / normalizer).to(hidden.dtype)
            grad_hidden[piece] = grad @ cast
            grad_weight += grad.mT @ used[piece]
        ctx.save_for_backward(rows, grad_hidden, grad_weight)
        ctx.positions, ctx.weight_dtype = targets.numel(), weight.dtype
        return (ce_sum + z_loss * z_sum) / normalizer, ce_sum, z_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        scaled = grad_hidden * scale.to(grad_hidden.dtype)
        if rows.numel() != ctx.positions:
            spread = scaled.new_zeros((ctx.positions, scaled.shape[1]))
            spread[rows] = scaled
            scaled = spread
        return scaled, (grad_weight * scale).to(ctx.weight_dtype), None, None, None, None
