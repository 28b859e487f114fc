"""Singular values of a matrix that is read block by block, and how far they can be trusted.

The Gram matrix of the smaller side is summed in fp32 over blocks of the longer side and its eigenvalues are taken in
fp64. Squaring the singular values halves the digits: where too few are left, the blocks are reduced to a triangle by
QR in fp64, whose singular values are the matrix's to fp64's rounding. The matrix is never held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 22
_TILE = 1024
_FP32, _FP64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
_ROUNDINGS = 4.0
"""How many roundings' size an eigenvalue is taken to be off by; held to fp64 SVDs by a test."""


@dataclass(frozen=True)
class Values:
    """Singular values in fp64, ascending, of the matrix times 2^-`exponent`."""

    values: Tensor
    exponent: int
    error: Tensor
    """How far each may be off."""
    floor: float
    """Values up to this are zero: not told from rounding, be it of the stored fp32 values or of the computation."""
    by: str
    """`gram` or `qr`."""

    @property
    def rank(self) -> int:
        """How many are not zero."""
        return int((self.values > self.floor).sum())


def look(matrix: Tensor) -> tuple[float, int]:
    """The largest magnitude, and how many values are NaN or infinite (then the magnitude means nothing)."""
    largest, wrong = 0.0, 0
    for block in _blocks(matrix):
        low, high = (float(one) for one in torch.aminmax(block))
        size = max(-low, high)
        if size != size or size == float("inf"):
            wrong += int((~torch.isfinite(block)).sum())
        largest = max(largest, size)
    return largest, wrong


def by_gram(matrix: Tensor, largest: float) -> Values:
    """From the Gram matrix. `matrix`: [rows, columns] of any float type; `largest`: its largest magnitude, > 0."""
    exponent = _exponent(largest)
    size = min(matrix.shape)
    gram = torch.zeros(size, size)
    for block in _blocks(matrix):
        scaled = _scaled(block, exponent, torch.float32)
        for first in range(0, size, _TILE):
            end = min(first + _TILE, size)
            gram[first:end, :end].addmm_(scaled[:, first:end].T, scaled[:, :end])
    energy = float(gram.diagonal().double().sum())
    values = torch.linalg.eigvalsh(gram.double()).clamp_(min=0).sqrt_()
    off = _ROUNDINGS * _FP32 * energy / size
    return Values(values, exponent, off / (values + off**0.5) + _ROUNDINGS * _FP32 * values, off**0.5, "gram")


def by_qr(matrix: Tensor, largest: float) -> Values:
    """From a triangle reduced from the blocks by QR; the arguments of `by_gram`."""
    exponent = _exponent(largest)
    triangle = torch.zeros(0, min(matrix.shape), dtype=torch.float64)
    for block in _blocks(matrix):
        stacked = torch.cat([triangle, _scaled(block, exponent, torch.float64)])
        triangle = torch.linalg.qr(stacked, mode="r").R
    values = torch.linalg.svdvals(triangle).flip(0)
    off = max(matrix.shape) * _FP64 * float(values[-1])
    floor = max(off, _ROUNDINGS * _FP32 * float(values.norm()) / len(values) ** 0.5)
    return Values(values, exponent, torch.full_like(values, off), floor, "qr")


def _blocks(matrix: Tensor) -> Iterator[Tensor]:
    """Blocks [n, smaller side] along the longer side; of a wide matrix, of its transpose."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return iter(tall.split(max(1, _BLOCK_ELEMENTS // tall.shape[1])))


def _exponent(largest: float) -> int:
    """The power of two that brings the largest magnitude near one, so that squares neither overflow nor vanish."""
    return int(torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent)


def _scaled(block: Tensor, exponent: int, dtype: torch.dtype) -> Tensor:
    wide = block if block.dtype == torch.float64 else block.to(torch.float32)
    return torch.ldexp(wide, torch.tensor(-exponent)).to(dtype)
