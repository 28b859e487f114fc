"""Muon's update on processors with bf16 products: `native/muon.c` over a list of matrices.

Reads and writes weight and momentum once and keeps a matrix in cache through its Newton-Schulz iteration. Equal to the
update in `muon.py` up to rounding.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trine.native.build import tile_library
from trine.native.threads import run_kernel
from trine.optim.newton_schulz import coefficients

_LARGEST = 1 << 20
"""Elements of a matrix; larger ones leave the cache, and torch shares each of their products between threads."""


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "momentum", "gradient")),
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        *((name, ctypes.c_float) for name in ("decay", "scale")),
    )


class _Muon(ctypes.Structure):
    _fields_ = (
        ("matrices", ctypes.POINTER(_Matrix)),
        ("coefficients", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "steps", "nesterov")),
        ("beta", ctypes.c_float),
        ("next", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Update:
    """One stack [..., rows, columns] of matrices and what becomes of it: W <- decay W - scale NS(direction)."""

    weight: Tensor
    momentum: Tensor
    gradient: Tensor
    rows: int
    columns: int
    decay: float
    scale: float


def applies(one: Update) -> bool:
    """Whether the kernel takes the stack: fp32 and contiguous on the CPU, sides multiples of 32, not too large."""
    tensors = (one.weight, one.momentum, one.gradient)
    plain = all(x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() for x in tensors)
    fits = one.rows % 32 == 0 and one.columns % 32 == 0 and one.rows * one.columns <= _LARGEST
    return plain and fits and tile_library("muon") is not None


def update(stacks: list[Update], *, beta: float, nesterov: bool, steps: int) -> None:
    """Update every matrix of `stacks` in place; see `Muon`."""
    matrices = [_Matrix(*_at(one, i), one.rows, one.columns, one.decay, one.scale) for one, i in _each(stacks)]
    if not matrices:
        return
    flat = torch.tensor(coefficients(steps), dtype=torch.float32)
    array = (_Matrix * len(matrices))(*matrices)
    call = _Muon(array, flat.data_ptr(), len(matrices), steps, nesterov, beta, 0)
    sizes = (max(m.rows * m.columns for m in matrices), max(min(m.rows, m.columns) ** 2 for m in matrices))
    lib: Any = tile_library("muon")
    run_kernel(lib.muon_update, call, "Muon's products", *sizes)


def _each(stacks: list[Update]) -> list[tuple[Update, int]]:
    """The matrices of all stacks, the largest first, so that threads end together."""
    found = [(one, i) for one in stacks for i in range(one.weight.numel() // (one.rows * one.columns))]
    return sorted(found, key=lambda pair: -pair[0].rows * pair[0].columns)


def _at(one: Update, i: int) -> list[int]:
    offset = i * one.rows * one.columns * 4
    return [x.data_ptr() + offset for x in (one.weight, one.momentum, one.gradient)]
