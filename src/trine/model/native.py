"""Softmax attention on processors with bf16 products: `native/attention.c` as an operator of torch with gradients.

Documents and window are looked up where a score is made, so no mask exists. Equal to the masked form up to rounding.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from trine.native.build import tile_library
from trine.native.threads import run_kernel

_SIZES = "rows length heads groups dim window".split()
_TENSORS = "query key value out grad grad_query grad_key grad_value".split()


class _Tensor(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("row", "position", "head")))


class _Attention(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("ids", ctypes.c_void_p),
        *((name, _Tensor) for name in _TENSORS),
        ("log_norm", ctypes.c_void_p),
        ("next", ctypes.c_int64),
    )


def native_attention_applies(head_dim: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels take heads of so many numbers, a multiple of 32, of bf16 on this CPU."""
    fits = device.type == "cpu" and dtype == torch.bfloat16 and head_dim % 32 == 0
    return fits and tile_library("attention") is not None


def native_attention(query: Tensor, key: Tensor, value: Tensor, ids: Tensor | None, window: int) -> Tensor:
    """Causal softmax(Q K^T / sqrt(D)) V of `query` [B, T, H, D] over `key`, `value` [B, T, G, D], G dividing H.

    `ids` [B, T] int32: a query sees its own id alone. `window` > 0: and fewer than so many positions back.
    """
    return _forward(query, key, value, ids, window)[0]


@torch.library.custom_op("trine::attention", mutates_args=())
def _forward(query: Tensor, key: Tensor, value: Tensor, ids: Tensor | None, window: int) -> tuple[Tensor, Tensor]:
    out = query.new_empty(query.shape)
    batch, length, heads, _ = query.shape
    log_norm = query.new_empty(batch, heads, length, dtype=torch.float32)
    _call("attention_forward", ids, window, log_norm, query=query, key=key, value=value, out=out)
    return out, log_norm


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, ids: Tensor | None, window: int) -> tuple[Tensor, Tensor]:
    batch, length, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty(batch, heads, length, dtype=torch.float32)


@torch.library.custom_op("trine::attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor | None,
    out: Tensor,
    log_norm: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    d_query, d_key, d_value = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    given = {"grad": grad, "query": query, "key": key, "value": value, "out": out}
    made = {"grad_query": d_query, "grad_key": d_key, "grad_value": d_value}
    _call("attention_backward", ids, window, log_norm, **given, **made)
    return d_query, d_key, d_value


@_backward.register_fake
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ids: Tensor | None,
    out: Tensor,
    log_norm: Tensor,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    ctx.save_for_backward(*tensors, *output)


def _grads(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad, *ctx.saved_tensors, ctx.window), None, None


_forward.register_autograd(_grads, setup_context=_keep)


def _call(name: str, ids: Tensor | None, window: int, log_norm: Tensor, **tensors: Tensor) -> None:
    """Call the kernel `name` on every thread."""
    held = {key: one if one.stride(-1) == 1 else one.contiguous() for key, one in tensors.items()}
    ids = None if ids is None else ids.contiguous()
    batch, length, heads, dim = held["query"].shape
    call = _Attention(batch, length, heads, held["key"].shape[2], dim, window)
    call.ids, call.log_norm = None if ids is None else ids.data_ptr(), log_norm.data_ptr()
    for key, one in held.items():
        row, position, head, _ = one.stride()
        setattr(call, key, _Tensor(one.data_ptr(), row, position, head))
    run_kernel(getattr(tile_library("attention"), name), call, "attention")
