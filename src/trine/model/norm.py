"""Root-mean-square normalisation in fp32 (Trinity Large report, section 2.1)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from trine.native.build import library
from trine.native.threads import run_kernel

_WORTH_A_KERNEL = 1 << 18
"""Numbers; torch makes eight passes over them, which few enough numbers stay in the cache for."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain over the last dimension, computed in at least fp32, returned in x's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        native = None if torch.compiler.is_compiling() else _native_norm(x, self.weight, self.eps)
        if native is not None:
            return native
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight.to(wide.dtype)).to(x.dtype)


class _Norm(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in "rows width narrow".split()),
        *((name, ctypes.c_void_p) for name in "x gain out".split()),
        ("eps", ctypes.c_double),
        ("next", ctypes.c_int64),
    )


def _native_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor | None:
    """By `native/norm.c`, for many bf16 numbers on the CPU that need no gradient; else None."""
    typed = x.dtype == torch.bfloat16 and gain.dtype in (torch.bfloat16, torch.float32)
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.numel() < _WORTH_A_KERNEL or not typed:
        return None
    width = x.shape[-1]
    if width % 16 or (lib := library("norm")) is None:
        return None
    x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    pointers = (one.data_ptr() for one in (x, gain, out))
    about = _Norm(x.numel() // width, width, gain.dtype == torch.bfloat16, *pointers, eps, 0)
    run_kernel(lib.norm_rows, about, "norms")
    return out
