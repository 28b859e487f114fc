"""One matrix product per expert over rows sorted by expert: `grouped_linear`, on CPU and GPU.

On CPU experts are shared out to as many workers as torch has threads, each product on one thread: products of a few
hundred rows are too small to split. Every result row or matrix is made by one product, so the result does not depend
on which worker made it. On GPU, and under types it takes, torch's grouped product is used.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from trine.moe.stacks import Stack
from trine.native.threads import can_pin, workers

_torch_grouped_mm = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
_STRETCH = 64
"""Longer products have a multiple of so many rows: oneDNN compiles a kernel for each new size and keeps about a
thousand, and experts see a different number of tokens every time."""
_WORTH_SHARING = 1 << 24
"""Multiplications below which one thread is faster than handing out."""


def grouped_linear(x_MI: Tensor, matrices: Stack, counts_E: Tensor) -> Tensor:
    """Rows of x, sorted by expert, times each expert's matrix transposed: [M, O].

    `counts_E` rows belong to each expert in turn and sum to M. The stack holds one matrix [O, I] per expert, or P of
    [O / P, I] that lie above each other; all in x's type. On CPU no product is made for the gradient of frozen ones.
    """
    if x_MI.device.type == "cpu":
        return _grouped_linear(x_MI, *matrices, counts_E)
    weight_EOI = matrices.joined().view(len(counts_E), -1, x_MI.shape[1])
    if _torch_grouped_mm is not None and _aligned_bf16(x_MI, weight_EOI):
        return _torch_grouped_mm(x_MI, weight_EOI.transpose(1, 2), offs=counts_E.cumsum(0).to(torch.int32))
    parts = x_MI.split(counts_E.tolist())
    return torch.cat([F.linear(part, weight) for part, weight in zip(parts, weight_EOI, strict=True)])


def _aligned_bf16(x_MI: Tensor, weight_EOI: Tensor) -> bool:
    return x_MI.dtype == torch.bfloat16 and all(size % 8 == 0 for size in weight_EOI.shape[1:])


@torch.library.custom_op("trine::grouped_linear", mutates_args=())
def _grouped_linear(x_MI: Tensor, trained: Tensor, frozen: Tensor, where: Tensor, counts_E: Tensor) -> Tensor:
    experts = _Experts(trained, frozen, where.tolist(), len(where) // len(counts_E))
    out_MO = x_MI.new_empty(x_MI.shape[0], experts.width)

    def product(expert: int, rows: slice) -> None:
        _rows_product(x_MI[rows], experts.matrix(expert).mT, out_MO[rows])

    _for_each_expert(product, counts_E, x_MI.numel() * experts.width)
    return out_MO


@_grouped_linear.register_fake
def _(x_MI: Tensor, trained: Tensor, frozen: Tensor, where: Tensor, counts_E: Tensor) -> Tensor:
    return x_MI.new_empty(x_MI.shape[0], trained.shape[1] * where.shape[0] // counts_E.shape[0])


@torch.library.custom_op("trine::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(
    grad_MO: Tensor, x_MI: Tensor, trained: Tensor, frozen: Tensor, where: Tensor, counts_E: Tensor
) -> tuple[Tensor, Tensor]:
    experts = _Experts(trained, frozen, where.tolist(), len(where) // len(counts_E))
    grad_x, grad_weight = torch.empty_like(x_MI), torch.empty_like(trained)

    def products(expert: int, rows: slice) -> None:
        _rows_product(grad_MO[rows], experts.matrix(expert), grad_x[rows])
        for columns, place in experts.trained_parts(expert):
            left, right = _whole_stretches(grad_MO[rows, columns]).mT, _whole_stretches(x_MI[rows])
            torch.mm(left, right, out=grad_weight[place])

    _for_each_expert(products, counts_E, 2 * x_MI.numel() * experts.width)
    return grad_x, grad_weight


@_grouped_linear_backward.register_fake
def _(
    grad_MO: Tensor, x_MI: Tensor, trained: Tensor, frozen: Tensor, where: Tensor, counts_E: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_MI), torch.empty_like(trained)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_MO: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    return *_grouped_linear_backward(grad_MO.contiguous(), *ctx.saved_tensors), None, None, None


_grouped_linear.register_autograd(_backward, setup_context=_keep)


class _Experts(NamedTuple):
    """The matrices of a stack by expert."""

    trained: Tensor
    frozen: Tensor
    places: list[int]
    each: int
    """Matrices of one expert, which lie above each other."""

    @property
    def width(self) -> int:
        """Columns of a result."""
        return self.each * self.trained.shape[1]

    def matrix(self, expert: int) -> Tensor:
        """All that an expert's rows are multiplied with, [O, I]."""
        places = self.places[expert * self.each : (expert + 1) * self.each]
        count = len(self.trained)
        found = [self.trained[i] if i < count else self.frozen[i - count] for i in places]
        return found[0] if self.each == 1 else torch.cat(found)

    def trained_parts(self, expert: int) -> list[tuple[slice, int]]:
        """Columns of the result that trained matrices of an expert make, and their places."""
        rows, places = self.trained.shape[1], self.places[expert * self.each : (expert + 1) * self.each]
        parts = [(slice(i * rows, (i + 1) * rows), place) for i, place in enumerate(places)]
        return [(columns, place) for columns, place in parts if place < len(self.trained)]


def _rows_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """left @ right into `out`: whole stretches, then the rows beyond them padded to one; fewer than one as they are."""
    whole = left.shape[0] // _STRETCH * _STRETCH
    if whole == 0:
        torch.mm(left, right, out=out)
        return
    torch.mm(left[:whole], right, out=out[:whole])
    if whole < left.shape[0]:
        out[whole:] = torch.mm(_whole_stretches(left[whole:]), right)[: left.shape[0] - whole]


def _whole_stretches(x: Tensor) -> Tensor:
    """`x` with zero rows added up to a multiple of `_STRETCH` rows."""
    missing = -x.shape[0] % _STRETCH
    return F.pad(x, (0, 0, 0, missing)) if missing else x


def _for_each_expert(work: Callable[[int, slice], None], counts_E: Tensor, multiplications: int) -> None:
    """Call `work(expert, rows)` for every expert; from several threads when it is worth it."""
    ends = list(accumulate(counts_E.tolist()))
    jobs = iter([(e, slice(begin, end)) for e, (begin, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True))])
    threads = torch.get_num_threads()
    if threads == 1 or multiplications < _WORTH_SHARING or not can_pin():
        for expert, rows in jobs:
            work(expert, rows)
        return

    @torch.no_grad()
    def worker(_: int) -> None:
        for expert, rows in jobs:
            work(expert, rows)

    list(workers(threads).map(worker, range(threads)))
