"""Stored numbers to the numbers of arithmetic and back: bf16, fp16, fp32 and fp64, as numpy arrays.

numpy has no bf16; it is the upper half of fp32, so widening is a shift and rounding (to nearest, ties to even) is an
addition. Each function works on arrays of any shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

STORED = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
"""How each floating-point type of safetensors is read; bf16 as its bits."""
NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
"""A config's names to safetensors'."""


def promote(types: list[str]) -> str:
    """The narrowest type that holds every value of each; bf16 with fp16 needs fp32."""
    found = set(types)
    if len(found) == 1:
        return types[0]
    return "F64" if "F64" in found else "F32"


def work_type(stored: str) -> np.dtype[Any]:
    """The type of the arithmetic: fp32, or fp64 for fp64."""
    return np.dtype(np.float64 if stored == "F64" else np.float32)


def widen(raw: Array, stored: str, out: Array) -> Array:
    """`raw`, as STORED reads it, into the fp32 or fp64 array `out`."""
    if stored == "BF16" and out.dtype == np.float32:
        np.left_shift(raw, 16, out=out.view(np.uint32), dtype=np.uint32)
    elif stored == "BF16":
        out[...] = (raw.astype(np.uint32) << 16).view(np.float32)
    else:
        with np.errstate(over="ignore"):
            out[...] = raw
    return out


def narrow(values: Array, stored: str) -> Array:
    """fp32 or fp64 `values` rounded to nearest even, as STORED holds them."""
    if stored == "BF16":
        return _bf16_bits(values)
    with np.errstate(over="ignore"):
        return values.astype(STORED[stored], copy=False)


def rounded(values: Array, stored: str) -> Array:
    """`values` rounded to a narrower type and widened again."""
    if work_type(stored) == values.dtype and stored in ("F32", "F64"):
        return values
    return widen(narrow(values, stored), stored, np.empty_like(values))


def _bf16_bits(values: Array) -> Array:
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    bits = single.view(np.uint32)
    odd = (bits >> 16) & 1
    odd += 0x7FFF
    odd += bits  # a NaN may wrap around here; it is put right below
    result = (odd >> 16).astype(np.uint16)
    if not np.isfinite(single).all():
        result = np.where(np.isnan(single), np.uint16(0x7FC0), result)
    return result
