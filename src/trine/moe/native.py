"""The experts' feed-forward on processors with AMX: `native/experts.c` as an operator of torch with gradients.

It gathers tokens while it packs them and keeps no sorted copies; weights are rounded to bf16 while they are packed and
their gradients are fp32 sums. Equal to the plain path in `experts.py` up to rounding.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from trine.native.build import amx_library
from trine.native.threads import on_threads, run_kernel

_POINTERS = "x gate_up down weights order ends turns hidden places grad grad_gate_up grad_down grad_weights".split()


class _Experts(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in "tokens choices experts width inner narrow".split()),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("next", ctypes.c_int64),
    )


@torch.compiler.assume_constant_result
def native_available() -> bool:
    """Whether this processor and system have what the kernels need."""
    return amx_library("experts") is not None


def native_experts(
    x_ND: Tensor, gate_up: Tensor, down: Tensor, experts_NK: Tensor, weights_NK: Tensor
) -> Tensor | None:
    """Sum over the K selected experts of weight times expert output, [N, D] bf16; None where the kernels do not apply.

    They take `x_ND` bf16, `gate_up` [E, 2I, D], `down` [E, D, I] fp32, or bf16 where no gradient is wanted, and
    `weights_NK` fp32 on the CPU, D and I multiples of 32.
    """
    kinds = {torch.float32} if torch.is_grad_enabled() else {torch.float32, torch.bfloat16}
    typed = x_ND.dtype == torch.bfloat16 and weights_NK.dtype == torch.float32 and gate_up.dtype == down.dtype
    fits = typed and down.dtype in kinds and down.shape[1] % 32 == 0 and down.shape[2] % 32 == 0
    if not (fits and x_ND.device.type == "cpu" and native_available()):
        return None
    return _forward(x_ND, gate_up, down, experts_NK, weights_NK)[0]


@torch.library.custom_op("trine::experts", mutates_args=())
def _forward(
    x_ND: Tensor, gate_up: Tensor, down: Tensor, experts_NK: Tensor, weights_NK: Tensor
) -> tuple[Tensor, Tensor]:
    call = _Call(x_ND, gate_up, down, experts_NK, weights_NK)
    hidden = x_ND.new_empty(experts_NK.numel(), gate_up.shape[1])
    return call.run("experts_forward", hidden=hidden), hidden


@_forward.register_fake
def _(x_ND: Tensor, gate_up: Tensor, down: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> tuple[Tensor, Tensor]:
    return x_ND.new_empty(x_ND.shape), x_ND.new_empty(experts_NK.numel(), gate_up.shape[1])


@torch.library.custom_op("trine::experts_backward", mutates_args=())
def _backward(
    grad_ND: Tensor,
    x_ND: Tensor,
    gate_up: Tensor,
    down: Tensor,
    experts_NK: Tensor,
    weights_NK: Tensor,
    hidden: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = _Call(x_ND, gate_up, down, experts_NK, weights_NK)
    grad_gate_up, grad_down = torch.empty_like(call.gate_up), torch.empty_like(call.down)
    grad_weights = torch.empty_like(call.weights)
    grads = {"grad_gate_up": grad_gate_up, "grad_down": grad_down, "grad_weights": grad_weights}
    grad_x = call.run("experts_backward", hidden=hidden, grad=grad_ND.contiguous(), **grads)
    return grad_x, grad_gate_up, grad_down, grad_weights


@_backward.register_fake
def _(
    grad_ND: Tensor,
    x_ND: Tensor,
    gate_up: Tensor,
    down: Tensor,
    experts_NK: Tensor,
    weights_NK: Tensor,
    hidden: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x_ND.new_empty(x_ND.shape), torch.empty_like(gate_up), torch.empty_like(down), torch.empty_like(weights_NK)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _grads(ctx: Any, grad_ND: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, gate_up, down, weights = _backward(grad_ND, *ctx.saved_tensors)
    return x, gate_up, down, None, weights


_forward.register_autograd(_grads, setup_context=_keep)


class _Call:
    """The sorted pairs of one call and what both directions read."""

    def __init__(self, x_ND: Tensor, gate_up: Tensor, down: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> None:
        self.lib: Any = amx_library("experts")
        self.x, self.gate_up, self.down = x_ND.contiguous(), gate_up.contiguous(), down.contiguous()
        self.weights = weights_NK.contiguous()
        self.pairs, self.choices = experts_NK.numel(), experts_NK.shape[1]
        chosen = experts_NK.contiguous()
        self.order, self.ends = torch.empty(self.pairs, dtype=torch.int64), torch.empty(len(down), dtype=torch.int64)
        self.lib.sort_pairs(_at(chosen), _int(self.pairs), _int(len(down)), _at(self.order), _at(self.ends))
        self.turns = self.ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).argsort(descending=True, stable=True)

    def run(self, name: str, **tensors: Tensor) -> Tensor:
        """Call the kernel `name` on every thread, then add up each token's rows: [N, D]."""
        tokens, width = self.x.shape
        places, out = self.x.new_empty(self.pairs, width), torch.empty_like(self.x)
        held = {"x": self.x, "gate_up": self.gate_up, "down": self.down, "weights": self.weights, "order": self.order}
        held |= {"ends": self.ends, "turns": self.turns, "places": places} | tensors
        narrow = self.down.dtype == torch.bfloat16
        sizes = (tokens, self.choices, len(self.down), width, self.down.shape[2], narrow)
        about = _Experts(*sizes, **{key: one.data_ptr() for key, one in held.items()}, next=0)
        run_kernel(getattr(self.lib, name), about, "the products of experts")
        threads = torch.get_num_threads()
        share = -(-tokens // threads)

        def add(thread: int) -> int:
            begin, end = thread * share, min(tokens, (thread + 1) * share)
            return self.lib.sum_choices(_at(out), _at(places), *map(_int, (begin, end, self.choices, width)))

        on_threads(add, threads)
        return out


def _at(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _int(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)
