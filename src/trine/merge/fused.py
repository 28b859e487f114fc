"""Whole methods on blocks of stored numbers by the kernels of native/mix.c, where a compiler is there.

Every one has a twin in numpy beside the method it serves, which also takes what kernels do not know: fp64, and
mergekit's rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.methods.inputs import Direct, Held, Inputs, Readable
from trine.native.build import library

_MODELS = 16
"""As in mix.c."""
PRUNING = np.dtype(
    [
        ("kind", "i8"), ("low", "f8"), ("high", "f8"), ("low_last", "i8"), ("high_last", "i8"), ("key", "u8"),
        ("below", "u8"), ("factor", "f8"), ("chances", "u8"), ("scaled", "i8"),
    ]
)  # fmt: skip
"""`pruning` of mix.c."""


@cache
def _library() -> ctypes.CDLL | None:
    found = library("mix", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
    if found is not None:
        at, long, single, double, flag = (
            ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_double, ctypes.c_int,
        )  # fmt: skip
        found.not_finite_bf16.argtypes = [at, long]
        found.combine.argtypes = [at, at, long, flag, at, single, single, at, long]
        found.products.argtypes = [at, at, long, flag, at, long]
        found.magnitudes.argtypes = [at, at, long, at, long]
        found.variance.argtypes = [at, at, long, at, long]
        found.mix.argtypes = [at, at, long, at, at, flag, single, single, at, long, long]
        found.sce.argtypes = [at, at, long, double, long, at, single, at, at, long, long]
        found.chances.argtypes = [at, long, long, single, single, at, at]
    return found


def finite_bf16(raw: Array) -> bool:
    """Whether all of the bf16 numbers, given as bits, are finite."""
    if c := _library():
        return not c.not_finite_bf16(raw.ctypes.data, raw.size)
    return not ((raw & 0x7F80) == 0x7F80).any()


def fused(inputs: Inputs, vectors: Sequence[Readable], base: Readable | None) -> Fused | None:
    """The kernels over a tensor's `vectors`, or their differences from `base`; None where they do not apply."""
    c = _library()
    if c is None or inputs.mergekit or inputs.work is not np.float32 or not 0 < len(vectors) <= _MODELS:
        return None
    return Fused(c, inputs, vectors, base)


class Fused:
    """Kernels over the blocks of one tensor. What they return lives until the next call."""

    def __init__(self, c: ctypes.CDLL, inputs: Inputs, vectors: Sequence[Readable], base: Readable | None) -> None:
        self.c, self.inputs, self.base = c, inputs, base
        self.count = len(vectors)
        self.tensors = [*vectors, *([base] if base is not None else [])]
        self.longest = max((stop - start for start, stop in inputs.spans()), default=0)
        self.out = np.empty(self.longest, np.float32)
        self.scores = np.empty(0, np.float32)

    def _call(self, kernel: Any, start: int, stop: int, *more: Any) -> None:
        """Call a kernel with the sources, their kinds and their number before `more`."""
        arrays = [_held(one, start, stop) for one in self.tensors]
        sources = np.array([one.ctypes.data for one in arrays], np.uint64)
        kinds = np.array([one.dtype == np.uint16 for one in arrays], np.int32)
        kernel(sources.ctypes.data, kinds.ctypes.data, self.count, *more)

    def combine(self, factors: Sequence[float], divisor: float = 1, scale: float = 1) -> Direct:
        """sum(factors v) / divisor * scale, plus the base where there is one."""
        weights = np.array(factors, np.float32)

        def run(start: int, stop: int) -> Array:
            how = (weights.ctypes.data, divisor, scale, self.out.ctypes.data, stop - start)
            self._call(self.c.combine, start, stop, self.base is not None, *how)
            return self.out[: stop - start]

        return Direct(run)

    def products(self) -> Array:
        """All inner products [count, count] over the tensor."""
        total = np.zeros((self.count, self.count))
        for start, stop in self.inputs.spans():
            self._call(self.c.products, start, stop, self.base is not None, total.ctypes.data, stop - start)
        return total + np.tril(total, -1).T

    def magnitudes(self, start: int, stop: int) -> list[Array]:
        """|difference| of each model."""
        out = self._scores(self.count * (stop - start))
        self._call(self.c.magnitudes, start, stop, out.ctypes.data, stop - start)
        return list(out.reshape(self.count, -1))

    def variance(self, start: int, stop: int) -> Array:
        """The variance over the models of their differences."""
        out = self._scores(stop - start)
        self._call(self.c.variance, start, stop, out.ctypes.data, stop - start)
        return out

    def _scores(self, count: int) -> Array:
        if len(self.scores) < count:
            self.scores = np.empty(count, np.float32)
        return self.scores[:count]

    def mix(self, weights: Sequence[float], prunings: Array, consensus: bool, divisor: float, scale: float) -> Direct:
        """Task arithmetic and its family; see mix.c. `prunings` [count]: PRUNING records."""
        factors, ranked = np.array(weights, np.float32), np.flatnonzero(prunings["kind"] == 4)

        def run(start: int, stop: int) -> Array:
            how = prunings.copy()
            kept = self._chances(how, ranked, start, stop)
            what = (factors.ctypes.data, how.ctypes.data, consensus, divisor, scale)
            self._call(self.c.mix, start, stop, *what, self.out.ctypes.data, start, stop - start)
            del kept
            return self.out[: stop - start]

        return Direct(run)

    def _chances(self, how: Array, ranked: Array, start: int, stop: int) -> Any:
        """Fill in where the chances of the models in `ranked` lie: `low` + rank * `high`."""
        if not len(ranked):
            return None
        columns = self.inputs.columns
        sizes, out = self.magnitudes(start, stop), np.empty((len(ranked), stop - start), np.float32)
        work = np.empty(2 * columns, np.uint64)
        for row, model in zip(out, ranked, strict=True):
            shape = ((stop - start) // columns, columns, how[model]["low"], how[model]["high"])
            self.c.chances(sizes[model].ctypes.data, *shape, work.ctypes.data, row.ctypes.data)
            how[model]["chances"] = row.ctypes.data
        return out

    def squares(self, value: float, last: int) -> Array:
        """Sums of squared differences per model, of what the cut at `value`, `last` selects by variance."""
        sums = np.zeros(self.count)
        for start, stop in self.inputs.spans():
            where = (None, 0, sums.ctypes.data, None, start, stop - start)
            self._call(self.c.sce, start, stop, value, last, *where)
        return sums

    def sce(self, value: float, last: int, weights: Sequence[float], smallest: float) -> Direct:
        """The merge by SCE under that cut."""
        factors = np.array(weights, np.float32)

        def run(start: int, stop: int) -> Array:
            what = (factors.ctypes.data, smallest, None, self.out.ctypes.data, start, stop - start)
            self._call(self.c.sce, start, stop, value, last, *what)
            return self.out[: stop - start]

        return Direct(run)


def _held(one: Readable, start: int, stop: int) -> Array:
    array = one.held(start, stop) if isinstance(one, Held) else one.read(start, stop)
    return array if array.dtype == np.uint16 else np.ascontiguousarray(array, np.float32)
