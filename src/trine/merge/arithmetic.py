"""The loops that methods share, over blocks of numbers: kernels in C where a compiler is there, numpy to the same bits.

Kernels take contiguous arrays; numpy serves whatever they do not know (fp64, fp16).
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from trine.merge import dtypes
from trine.merge.dtypes import Array
from trine.native.build import library


@cache
def _kernels() -> ctypes.CDLL | None:
    found = library("merge")
    if found is not None:
        pointer, long, single = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
        found.widen_bf16.argtypes = [pointer, pointer, long]
        found.narrow_bf16.argtypes = [pointer, pointer, long]
        found.weighted_sum.argtypes = [pointer, pointer, long, long]
        found.scan_block.argtypes = [pointer, long, single, single, pointer, pointer]
        found.scan_block.restype = long
        found.agree.argtypes = [pointer, pointer, long, pointer, pointer, long]
        found.crc32.argtypes = [ctypes.c_uint32, pointer, long]
        found.crc32.restype = ctypes.c_uint32
        found.draw.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, pointer, long]
    return found


def _single(*arrays: Array) -> bool:
    return all(one.dtype == np.float32 and one.flags.c_contiguous for one in arrays)


def _addresses(arrays: Sequence[Array]) -> Array:
    return np.array([one.ctypes.data for one in arrays], np.uint64)


def widen(raw: Array, stored: str, out: Array) -> bool:
    """`raw`, as `dtypes.STORED` reads it, into the fp32 or fp64 array `out`; whether all of it is finite."""
    if (c := _kernels()) and stored == "BF16" and _single(out) and raw.flags.c_contiguous:
        return not c.widen_bf16(raw.ctypes.data, out.ctypes.data, raw.size)
    dtypes.widen(raw, stored, out)
    return bool(np.isfinite(out).all())


def narrow(values: Array, stored: str) -> Array:
    """fp32 or fp64 `values` rounded to nearest even, as `dtypes.STORED` holds them."""
    if (c := _kernels()) and stored == "BF16" and _single(values):
        out = np.empty(values.shape, np.uint16)
        c.narrow_bf16(values.ctypes.data, out.ctypes.data, values.size)
        return out
    return dtypes.narrow(values, stored)


def weighted_sum(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    """sum_i w_i x_i in the order given, each step rounded once (a fused multiply-add); overwrites the first array."""
    total = arrays[0]
    if (c := _kernels()) and _single(*arrays):
        factors, addresses = np.array(weights, np.float32), _addresses(arrays)  # both live until the call is over
        c.weighted_sum(addresses.ctypes.data, factors.ctypes.data, len(arrays), total.size)
        return total
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


def agree(weights: Sequence[float], deltas: Sequence[Array]) -> tuple[Array, Array]:
    """Of weighted differences: sums of those, and of their weights, that have the sign of the sum of all.

    The sign is + where that sum is 0; a sum of weights that is 0 becomes 1 (TIES, Yadav et al. 2023, section 3).
    """
    above, below = np.zeros_like(deltas[0]), np.zeros_like(deltas[0])
    if (c := _kernels()) and _single(*deltas):
        factors, addresses = np.array(weights, np.float32), _addresses(deltas)
        places = (addresses.ctypes.data, factors.ctypes.data, len(deltas), above.ctypes.data, below.ctypes.data)
        c.agree(*places, above.size)
        return above, below
    positive = sum(deltas[1:], deltas[0]) >= 0
    for weight, delta in zip(weights, deltas, strict=True):
        same = np.where(positive, delta > 0, delta < 0)
        np.add(above, delta, out=above, where=same)
        np.add(below, weight, out=below, where=same)
    below[below == 0] = 1
    return above, below


class Seen(NamedTuple):
    """What a bracket finds in scores that come block by block."""

    counts: Array
    """[blocks, 5]: how many lie above it, at its upper and at its lower end, are not 0, lie strictly inside."""
    inside: Array | None
    """Those strictly inside, in order; None where they are too many."""


def scan(scores: Array, low: float, high: float) -> Seen:
    """How a block of scores lies about the bracket from `low` to `high`."""
    if (c := _kernels()) and _single(scores):
        counts, values = np.empty(4, np.int64), np.empty(scores.size + 16, np.float32)
        kept = c.scan_block(scores.ctypes.data, scores.size, low, high, counts.ctypes.data, values.ctypes.data)
        return Seen(np.append(counts, kept)[None], values[:kept].copy())
    inside = (scores > low) & (scores < high)
    counted = (scores > high, scores == high, scores == low, scores, inside)
    return Seen(np.array([[np.count_nonzero(one) for one in counted]]), scores[inside])


def draw(place: int, first: int, second: int, count: int) -> Array | None:
    """32 random bits for elements from `place` on (see `methods.keyed`), or None where there is no kernel."""
    if c := _kernels():
        out = np.empty(count, np.uint32)
        c.draw(place, first, second, out.ctypes.data, count)
        return out
    return None


def crc32(data: Array, before: int = 0) -> int:
    """CRC-32 of an array's bytes after bytes whose CRC-32 is `before`; equals `zlib.crc32`."""
    c = _kernels()
    if c is None or not c.has_crc32():
        return zlib.crc32(data.data, before)
    return c.crc32(before, data.ctypes.data, data.nbytes)


def gram(blocks: Iterable[Sequence[Array]], count: int) -> Array:
    """All inner products [count, count] of `count` vectors given block by block, summed in fp64."""
    total = np.zeros((count, count))
    for arrays in blocks:
        for i, left in enumerate(arrays):
            for j in range(i + 1):
                total[i, j] += np.dot(left, arrays[j])
    return total + np.tril(total, -1).T
