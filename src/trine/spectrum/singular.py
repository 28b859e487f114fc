"""Singular values of a matrix that is read block by block, and how far they can be trusted.

The Gram matrix of the smaller side is summed over blocks of the longer side, its lower triangle alone, in fp32 and of
matrices that are nearly square in fp64; its eigenvalues are taken in fp64. Squaring the singular values halves the
digits: where too few are left, the Gram matrix is summed in fp64; where these do not do either, the blocks are reduced
to a triangle by QR in fp64, whose singular values are the matrix's to fp64's rounding. The matrix is never held whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CPU = torch.device("cpu")
_BLOCK_ELEMENTS = 1 << 22
_TILE = 256
_SMALL = 1536
"""Up to this size numpy's LAPACK takes down to half of torch's time for eigenvalues (measured with MKL on AMD)."""
_NEAR_ONE = 32
"""Exponents up to this size are not scaled away: fp32 holds the squares."""
_FP32, _FP64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
_ROUNDINGS = {torch.float32: 4.0, torch.float64: 1024.0}
"""How many roundings of the mean eigenvalue's size an eigenvalue is taken to be off by; held to fp64 SVDs by a test.
In fp64 the eigenvalues' own algorithm rounds as well, by more in matrices of one dominant value."""


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
    """`gram`, `gram64` or `qr`."""

    @property
    def rank(self) -> int:
        """How many are not zero."""
        return int((self.values > self.floor).sum())


def look(matrix: Tensor, device: torch.device = CPU) -> tuple[float, int]:
    """The largest magnitude, and how many values are NaN or infinite (then the magnitude means nothing)."""
    largest, wrong = 0.0, 0
    for block in _blocks(matrix, device):
        low, high = (float(one) for one in torch.aminmax(block))
        size = max(-low, high)
        if size != size or size == float("inf"):
            wrong += int((~torch.isfinite(block)).sum())
        largest = max(largest, size)
    return largest, wrong


def by_gram(matrix: Tensor, largest: float, dtype: torch.dtype = torch.float32, device: torch.device = CPU) -> Values:
    """From the Gram matrix summed in `dtype`. `matrix`: [rows, columns] of any float type; `largest`: its largest
    magnitude, > 0."""
    exponent, size = _exponent(largest), min(matrix.shape)
    gram = torch.zeros(size, size, dtype=dtype, device=device)
    for block in _blocks(matrix, device):
        scaled = _scaled(block, exponent, dtype)
        for first in range(0, size, _TILE):
            end = min(first + _TILE, size)
            gram[first:end, :end].addmm_(scaled[:, first:end].T, scaled[:, :end])
    gram = gram.double()
    energy = float(gram.diagonal().sum())
    values = _eigenvalues(gram).clamp_(min=0).sqrt_()
    relative = _ROUNDINGS[dtype] * torch.finfo(dtype).eps
    off = relative * energy / size
    by = "gram" if dtype == torch.float32 else "gram64"
    return Values(values, exponent, off / (values + off**0.5) + relative * values, off**0.5, by)


def by_qr(matrix: Tensor, largest: float, device: torch.device = CPU) -> Values:
    """From a triangle reduced from the blocks by QR; the arguments of `by_gram`."""
    exponent = _exponent(largest)
    triangle = torch.zeros(0, min(matrix.shape), dtype=torch.float64, device=device)
    for block in _blocks(matrix, device):
        stacked = torch.cat([triangle, _scaled(block, exponent, torch.float64)])
        triangle = torch.linalg.qr(stacked, mode="r").R
    values = torch.linalg.svdvals(triangle).flip(0).cpu()
    off = max(matrix.shape) * _FP64 * float(values[-1])
    stored = _ROUNDINGS[torch.float32] * _FP32 * float(values.norm()) / len(values) ** 0.5
    return Values(values, exponent, torch.full_like(values, off), max(off, stored), "qr")


def _eigenvalues(gram: Tensor) -> Tensor:
    """Ascending, on the CPU, from the lower triangle."""
    if gram.device == CPU and len(gram) <= _SMALL:
        return torch.from_numpy(np.linalg.eigvalsh(gram.numpy(), UPLO="L"))
    return torch.linalg.eigvalsh(gram, UPLO="L").cpu()


def _blocks(matrix: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Blocks [n, smaller side] along the longer side, on `device`; of a wide matrix, of its transpose."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    return (block.to(device) for block in tall.split(max(1, _BLOCK_ELEMENTS // tall.shape[1])))


def _exponent(largest: float) -> int:
    """The power of two that brings the largest magnitude near one, so that squares neither overflow nor vanish; 0 near
    enough."""
    exponent = int(torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent)
    return 0 if abs(exponent) <= _NEAR_ONE else exponent


def _scaled(block: Tensor, exponent: int, dtype: torch.dtype) -> Tensor:
    wide = block if block.dtype == torch.float64 else block.to(torch.float32)
    return (torch.ldexp(wide, torch.tensor(-exponent, device=block.device)) if exponent else wide).to(dtype)
