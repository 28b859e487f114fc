"""Softmax attention on CPU whose backward pass is matrix products, for compiled blocks.

The forward pass is torch's flash kernel. Backward, for P = exp(Q K^T / sqrt(D) + mask - L) with L the forward pass's
row-wise logsumexp (Dao et al., FlashAttention, section 3.1):

    dV = P^T dO;  dS = P * (dO V^T - rowsum(dO * O));  dQ = dS K / sqrt(D);  dK = dS^T Q / sqrt(D)

made for stretches of queries against the keys that any of them may see. Compiled, each stretch is five products and
one elementwise loop; torch's own kernel takes about twice as long.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_STRETCH = 128
_MOST_STRETCHES = 16
"""Each stretch is code of its own once compiled, so long rows get longer stretches."""


def flash_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int | None) -> Tensor:
    """softmax(Q K^T / sqrt(D) + mask) V for `query` [B, H, T, D], `key` and `value` [B, G, S, D], G dividing H.

    `mask` [B or 1, 1, T, S] of query's type is added to the scores and hides at least what lies after a query, whose
    position is S - T plus its index, or `window` or more before it; None is plain causal with S = T. Every key lies in
    the window of a query.
    """
    return _Flash.apply(query, key, value, mask, window)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int | None) -> Tensor:
        repeats = query.shape[1] // key.shape[1]
        out, log_norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, _repeat(key, repeats), _repeat(value, repeats), 0.0, mask is None, attn_mask=mask
        )
        ctx.save_for_backward(query, key, value, mask, out, log_norm)
        ctx.window = window
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, out, log_norm = ctx.saved_tensors
        (grad,) = grads
        batch, groups, keys, dim = key.shape
        length, dtype = query.shape[2], query.dtype
        repeats, scale = query.shape[1] // groups, 1 / math.sqrt(dim)
        delta = (grad * out).sum(-1, dtype=log_norm.dtype)
        step = _stretch(length)
        d_query: list[Tensor] = []
        d_key: list[Tensor | None] = [None] * -(-keys // step)
        d_value = d_key.copy()

        def rows(x: Tensor, begin: int, end: int) -> Tensor:
            return x[:, :, begin:end].reshape(batch * groups, -1, x.shape[-1])

        for begin in range(0, length, step):
            end = min(begin + step, length)
            low, high = _reach(begin, end, keys, keys - length, ctx.window, step)
            q, g = rows(query, begin, end), rows(grad, begin, end)
            k, v = rows(key, low, high), rows(value, low, high)
            shape = (batch, groups, repeats, end - begin, high - low)
            scores = torch.bmm(q, k.mT).view(shape).to(log_norm.dtype) * scale
            if mask is not None:
                scores = scores + mask[:, :, None, begin:end, low:high]
            else:
                scores = scores + _causal(end - begin, high - low, scores)
            p = torch.exp(scores - log_norm[:, :, begin:end].view(*shape[:4], 1))
            d_p = torch.bmm(g, v.mT).view(shape).to(log_norm.dtype)
            d_scores = p * (d_p - delta[:, :, begin:end].view(*shape[:4], 1)) * scale
            flat = (batch * groups, repeats * (end - begin), high - low)
            p, d_scores = p.to(dtype).view(flat), d_scores.to(dtype).view(flat)
            d_query.append(torch.bmm(d_scores, k).view(batch, groups, repeats, end - begin, dim))
            _add(d_key, torch.bmm(d_scores.mT, q).view(batch, groups, -1, dim), low, step)
            _add(d_value, torch.bmm(p.mT, g).view(batch, groups, -1, dim), low, step)
        return torch.cat(d_query, 3).view(query.shape), _join(d_key, key), _join(d_value, value), None, None


def _stretch(length: int) -> int:
    return max(_STRETCH, -(-length // _MOST_STRETCHES))


def _reach(begin: int, end: int, keys: int, offset: int, window: int | None, step: int) -> tuple[int, int]:
    """First and last key (exclusive) of the whole stretches of keys that queries begin ... end - 1 may see."""
    low = 0 if window is None else max(0, begin + offset - window + 1)
    return low // step * step, min(keys, -(-(end + offset) // step) * step)


def _causal(queries: int, keys: int, like: Tensor) -> Tensor:
    hidden = torch.full((queries, keys), float("-inf"), device=like.device, dtype=like.dtype)
    return hidden.triu(keys - queries + 1)


def _repeat(x: Tensor, repeats: int) -> Tensor:
    batch, groups, keys, dim = x.shape
    return x.unsqueeze(2).expand(batch, groups, repeats, keys, dim).reshape(batch, groups * repeats, keys, dim)


def _add(parts: list[Tensor | None], piece: Tensor, low: int, step: int) -> None:
    """Add `piece`, which begins at key `low`, to the per-stretch sums, in at least fp32."""
    wide = torch.promote_types(piece.dtype, torch.float32)
    for i, part in enumerate(piece.to(wide).split(step, dim=2), low // step):
        before = parts[i]
        parts[i] = part if before is None else before + part


def _join(parts: list[Tensor | None], like: Tensor) -> Tensor:
    """The sums, stretch after stretch, as one tensor like `like`."""
    whole = [torch.zeros_like(like[:, :, :0]) if part is None else part for part in parts]
    return torch.cat(whole, dim=2).to(like.dtype)
