"""Cross-entropy on processors with bf16 products: `native/loss.c` as a differentiable function.

Logits exist for 32 tokens of a thread at a time, in fp32; their gradients for a chunk. A frozen head gets no gradient.
Equal to the plain path of `loss.py` up to rounding.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from trine.native.build import tile_library
from trine.native.threads import run_kernel

_POINTERS = "hidden weight rows targets across along slopes cross_entropy log_norm grad_hidden grad_weight".split()


class _Loss(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("width", "vocabulary", "chunk", "narrow")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_float) for name in ("share", "z_loss")),
        *((name, ctypes.c_int64) for name in ("begin", "end", "next")),
    )


def native_loss_applies(hidden: Tensor, weight: Tensor) -> bool:
    """Whether the kernels take `hidden` [N, D] bf16 and `weight` [V, D] on the CPU, D and V multiples of 32.

    The weight is fp32 or, where it is frozen, bf16.
    """
    kept = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and not weight.requires_grad)
    types = hidden.dtype == torch.bfloat16 and kept and hidden.device.type == "cpu"
    return types and not any(size % 32 for size in weight.shape) and tile_library("loss") is not None


class NativeCrossEntropy(torch.autograd.Function):
    """Loss, sum of cross-entropy and sum of logsumexp^2 as `chunked_cross_entropy` gives them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, z_loss: float, normalizer: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = (targets >= 0).nonzero().squeeze(1)
        with_grad, trained = any(ctx.needs_input_grad[:2]), ctx.needs_input_grad[1]
        chunk = -(-min(chunk, max(len(rows), 1)) // 32) * 32
        held = {"hidden": hidden.contiguous(), "weight": weight.contiguous(), "rows": rows, "targets": targets}
        held |= {"across": hidden.new_empty(weight.shape)}
        held |= {name: torch.empty(len(rows)) for name in ("cross_entropy", "log_norm")}
        if with_grad:
            held |= {"along": hidden.new_empty(weight.shape), "slopes": hidden.new_empty(chunk, len(weight))}
            held |= {"grad_hidden": torch.zeros_like(held["hidden"])}
        if trained:
            held |= {"grad_weight": torch.zeros_like(held["weight"])}
        narrow = int(weight.dtype == torch.bfloat16)
        loss = _Loss(weight.shape[1], len(weight), chunk, narrow, share=1 / normalizer, z_loss=z_loss)
        for name, tensor in held.items():
            setattr(loss, name, tensor.data_ptr())
        _run("loss_pack", loss)
        for begin in range(0, len(rows), chunk):
            loss.begin, loss.end = begin, min(begin + chunk, len(rows))
            _run("loss_tokens", loss)
            if trained:
                _run("loss_weights", loss)
        ctx.save_for_backward(held.get("grad_hidden"), held.get("grad_weight"))
        ce_sum, z_sum = held["cross_entropy"].sum(), held["log_norm"].square().sum()
        return (ce_sum + z_loss * z_sum) / normalizer, ce_sum, z_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        if float(scale) != 1:
            grad_hidden = grad_hidden * scale.to(grad_hidden.dtype)
            grad_weight = None if grad_weight is None else grad_weight * scale
        return grad_hidden, grad_weight, None, None, None, None


def _run(name: str, loss: _Loss) -> None:
    """Call the kernel `name` on every thread."""
    loss.next = 0
    run_kernel(getattr(tile_library("loss"), name), loss, "the loss")
