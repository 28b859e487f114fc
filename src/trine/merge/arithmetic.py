"""The sums that methods share: weighted sums of blocks, and all inner products of a set of vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from trine.merge import dtypes
from trine.merge.dtypes import Array


def weighted_sum(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    """sum_i w_i x_i in the order given, each step rounded once (a fused multiply-add); overwrites the first array."""
    total = arrays[0]
    np.multiply(total, total.dtype.type(weights[0]), out=total)
    for weight, values in zip(weights[1:], arrays[1:], strict=True):
        _add_scaled(total, weight, values)
    return total


def _add_scaled(total: Array, weight: float, values: Array) -> None:
    """total += weight * values as a fused multiply-add: in fp64 the product of two fp32 numbers is exact."""
    if total.dtype == np.float64:
        total += weight * values
    else:
        total[...] = np.float64(np.float32(weight)) * values.astype(np.float64) + total


def gram(blocks: Iterable[Sequence[Array]], count: int) -> Array:
    """All inner products [count, count] of `count` vectors given block by block, summed in fp64."""
    total = np.zeros((count, count))
    for arrays in blocks:
        for i, left in enumerate(arrays):
            for j in range(i + 1):
                total[i, j] += np.dot(left, arrays[j])
    return total + np.tril(total, -1).T


def row_sums(values: Array, columns: int) -> Array:
    """Sums of rows [rows, 1] of a flat block."""
    return values.reshape(-1, columns).sum(axis=1, dtype=np.float64, keepdims=True)


def widen(raw: Array, stored: str, out: Array) -> Array:
    """`raw`, as `dtypes.STORED` reads it, into the fp32 or fp64 array `out`."""
    return dtypes.widen(raw, stored, out)


def narrow(values: Array, stored: str) -> Array:
    """fp32 or fp64 `values` rounded to nearest even, as `dtypes.STORED` holds them."""
    return dtypes.narrow(values, stored)


def not_finite(values: Array) -> bool:
    """Whether an array holds NaN or infinity."""
    return not np.isfinite(values).all()
