"""The experts' feed-forward on processors with bf16 products: `native/experts.c` as an operator with gradients.

It gathers tokens while it packs them and keeps no sorted copies; weights are rounded to bf16 while they are packed and
the trained ones' gradients are fp32 sums. Equal to the plain path in `experts.py` up to rounding.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from trine.moe.stacks import Stack
from trine.native.build import tile_library
from trine.native.threads import on_threads, run_kernel

_POINTERS = "x matrices weights order ends turns hidden places grad grad_weights".split()


class _Experts(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in "tokens choices experts width inner".split()),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("next", ctypes.c_int64),
    )


@torch.compiler.assume_constant_result
def native_available() -> bool:
    """Whether this processor and system have what the kernels need."""
    return tile_library("experts") is not None


def native_experts(x_ND: Tensor, gate_up: Stack, down: Stack, experts_NK: Tensor, weights_NK: Tensor) -> Tensor | None:
    """Sum over the K selected experts of weight times expert output, [N, D] bf16; None where the kernels do not apply.

    They take `x_ND` bf16, stacks of [I, D] (or [2I, D], gate rows first) and [D, I] and `weights_NK` fp32 on the CPU, D
    and I multiples of 32; frozen matrices may be bf16. No product is made for the gradient of those.
    """
    floats = all(one.dtype == torch.float32 for one in (gate_up.trained, down.trained, weights_NK) if one.numel())
    kept = all(one.dtype in (torch.float32, torch.bfloat16) for one in (gate_up.frozen, down.frozen))
    rows, columns = down.trained.shape[1:]
    fits = x_ND.dtype == torch.bfloat16 and floats and kept and rows % 32 == 0 and columns % 32 == 0
    if not (fits and x_ND.device.type == "cpu" and native_available()):
        return None
    if gate_up.trained.shape[1] != columns:
        where = torch.arange(2 * len(down.where))
        trained, frozen = (one.reshape(-1, columns, rows) for one in gate_up[:2])
        gate_up = Stack(trained, frozen, where)
    return _forward(x_ND, *gate_up, *down, experts_NK, weights_NK)[0]


@torch.library.custom_op("trine::experts", mutates_args=())
def _forward(
    x_ND: Tensor,
    gate_up: Tensor,
    gate_up_frozen: Tensor,
    gate_up_where: Tensor,
    down: Tensor,
    down_frozen: Tensor,
    down_where: Tensor,
    experts_NK: Tensor,
    weights_NK: Tensor,
) -> tuple[Tensor, Tensor]:
    stacks = Stack(gate_up, gate_up_frozen, gate_up_where), Stack(down, down_frozen, down_where)
    call = _Call(x_ND, *stacks, experts_NK, weights_NK)
    hidden = x_ND.new_empty(experts_NK.numel(), 2 * gate_up.shape[1])
    return call.run("experts_forward", hidden=hidden), hidden


@_forward.register_fake
def _(x_ND: Tensor, gate_up: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
    experts_NK = others[-2]
    return x_ND.new_empty(x_ND.shape), x_ND.new_empty(experts_NK.numel(), 2 * gate_up.shape[1])


@torch.library.custom_op("trine::experts_backward", mutates_args=())
def _backward(
    grad_ND: Tensor,
    x_ND: Tensor,
    gate_up: Tensor,
    gate_up_frozen: Tensor,
    gate_up_where: Tensor,
    down: Tensor,
    down_frozen: Tensor,
    down_where: Tensor,
    experts_NK: Tensor,
    weights_NK: Tensor,
    hidden: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    stacks = Stack(gate_up, gate_up_frozen, gate_up_where), Stack(down, down_frozen, down_where)
    grad_gate_up, grad_down = torch.empty_like(gate_up), torch.empty_like(down)
    call = _Call(x_ND, *stacks, experts_NK, weights_NK, grad_gate_up, grad_down)
    grad_weights = torch.empty_like(call.weights)
    grads = {"hidden": hidden, "grad": grad_ND.contiguous(), "grad_weights": grad_weights}
    return call.run("experts_backward", **grads), grad_gate_up, grad_down, grad_weights


@_backward.register_fake
def _(grad_ND: Tensor, x_ND: Tensor, gate_up: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    down, weights_NK = others[2], others[-2]
    return x_ND.new_empty(x_ND.shape), torch.empty_like(gate_up), torch.empty_like(down), torch.empty_like(weights_NK)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _grads(ctx: Any, grad_ND: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, gate_up, down, weights = _backward(grad_ND, *ctx.saved_tensors)
    return x, gate_up, None, None, down, None, None, None, weights


_forward.register_autograd(_grads, setup_context=_keep)


class _Call:
    """The sorted pairs of one call and what both directions read."""

    def __init__(
        self,
        x_ND: Tensor,
        gate_up: Stack,
        down: Stack,
        experts_NK: Tensor,
        weights_NK: Tensor,
        grad_gate_up: Tensor | None = None,
        grad_down: Tensor | None = None,
    ) -> None:
        self.lib: Any = tile_library("experts")
        self.x, self.weights = x_ND.contiguous(), weights_NK.contiguous()
        self.experts, self.inner = len(down.where), down.trained.shape[2]
        self.stacks = _contiguous(gate_up), _contiguous(down)
        above = _table(self.stacks[0], grad_gate_up).view(self.experts, 2, 3)
        self.matrices = torch.cat((above, _table(self.stacks[1], grad_down).unsqueeze(1)), dim=1)
        self.pairs, self.choices = experts_NK.numel(), experts_NK.shape[1]
        chosen = experts_NK.contiguous()
        self.order, self.ends = torch.empty(self.pairs, dtype=torch.int64), torch.empty(self.experts, dtype=torch.int64)
        self.lib.sort_pairs(_at(chosen), _int(self.pairs), _int(self.experts), _at(self.order), _at(self.ends))
        self.turns = self.ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).argsort(descending=True, stable=True)

    def run(self, name: str, **tensors: Tensor) -> Tensor:
        """Call the kernel `name` on every thread, then add up each token's rows: [N, D]."""
        tokens, width = self.x.shape
        places, out = self.x.new_empty(self.pairs, width), torch.empty_like(self.x)
        held = {"x": self.x, "matrices": self.matrices, "weights": self.weights, "order": self.order}
        held |= {"ends": self.ends, "turns": self.turns, "places": places} | tensors
        sizes = (tokens, self.choices, self.experts, width, self.inner)
        about = _Experts(*sizes, **{key: one.data_ptr() for key, one in held.items()}, next=0)
        run_kernel(getattr(self.lib, name), about, "the products of experts")
        threads = torch.get_num_threads()
        share = -(-tokens // threads)

        def add(thread: int) -> int:
            begin, end = thread * share, min(tokens, (thread + 1) * share)
            return self.lib.sum_choices(_at(out), _at(places), *map(_int, (begin, end, self.choices, width)))

        on_threads(add, threads)
        return out


def _contiguous(stack: Stack) -> Stack:
    return Stack(stack.trained.contiguous(), stack.frozen.contiguous(), stack.where)


def _table(stack: Stack, grad: Tensor | None) -> Tensor:
    """Of each matrix of a stack its address, that of its gradient (0: none) and whether it is bf16: int64 [n, 3]."""
    size, rows = stack.trained[0:1].numel() or stack.frozen[0:1].numel(), []
    for one, slopes in ((stack.trained, grad), (stack.frozen, None)):
        places = torch.arange(len(one)) * size
        at = one.data_ptr() + places * one.element_size()
        made = torch.zeros_like(at) if slopes is None else slopes.data_ptr() + places * slopes.element_size()
        rows.append(torch.stack((at, made, torch.full_like(at, one.dtype == torch.bfloat16)), dim=1))
    return torch.cat(rows)[stack.where]


def _at(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


def _int(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)
