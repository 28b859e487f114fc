"""Whole methods on stored numbers by the kernels of native/mix.c, where a compiler is there.

Where every input is bf16 or fp32 in a file, kernels read, merge, round, check and write a whole tensor without Python;
else they are called block by block. Every one has a twin in numpy beside the method it serves, which also takes what
kernels do not know: fp64, and mergekit's rounding.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from trine.errors import TrineError
from trine.merge.arithmetic import Seen
from trine.merge.dtypes import Array
from trine.merge.methods.inputs import Direct, Fed, Held, Inputs, Readable, Target
from trine.native.build import library

_MODELS = 16
"""As in mix.h, as the records below."""
_TILE = 1024
_COMBINE, _PRODUCTS, _MIX, _SCE = range(4)
PRUNING = np.dtype(
    [
        ("kind", "i8"), ("low", "f8"), ("high", "f8"), ("low_last", "i8"), ("high_last", "i8"), ("key", "u8"),
        ("below", "u8"), ("factor", "f8"), ("scaled", "i8"),
    ]
)  # fmt: skip
"""`pruning` of mix.h."""
_TASK = np.dtype(
    [
        ("kind", "i8"), ("count", "i8"), ("based", "i8"), ("consensus", "i8"), ("variance", "i8"), ("divisor", "f8"),
        ("scale", "f8"), ("value", "f8"), ("last", "i8"), ("smallest", "f8"), ("columns", "i8"), ("weights", "u8"),
        ("how", "u8"), ("sums", "u8"), ("scratch", "u8"),
    ]
)  # fmt: skip
_FEED = np.dtype([("file", "i8"), ("offset", "i8"), ("kind", "i8"), ("checked", "i8"), ("buffer", "u8")])
_SINK = np.dtype([("file", "i8"), ("offset", "i8"), ("kind", "i8"), ("crc", "i8"), ("failed", "i8"), ("buffer", "u8")])
_BRACKET = np.dtype(
    [
        ("stream", "i8"), ("low", "f8"), ("high", "f8"), ("counts", "u8"), ("values", "u8"), ("capacity", "i8"),
        ("kept", "i8"),
    ]
)  # fmt: skip


@cache
def _library() -> ctypes.CDLL | None:
    found = library("mix", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
    if found is not None:
        at, long = ctypes.c_void_p, ctypes.c_int64
        found.not_finite_bf16.argtypes = [at, long]
        found.apply.argtypes = [at, at, at, at, long, long]
        found.score.argtypes = [at, at, at, at, long]
        found.stream.argtypes = [at, at, at, long, long, long, at]
        found.survey.argtypes = [at, at, long, long, at, long]
        found.sample.argtypes = [at, at, at, long, long, at]
        for one in (found.stream, found.survey, found.sample):
            one.restype = long
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
    """Kernels over one tensor. The blocks they return live until the next call."""

    def __init__(self, c: ctypes.CDLL, inputs: Inputs, vectors: Sequence[Readable], base: Readable | None) -> None:
        self.c, self.inputs = c, inputs
        self.count, self.based = len(vectors), base is not None
        self.tensors = [*vectors, *([base] if base is not None else [])]
        self.block = min(inputs.step, inputs.size)
        self.out = np.empty(self.block, np.float32)
        self.narrow = np.empty(self.block, np.uint16)
        self.feeds = _feeds(self.tensors, self.block) if c.has_crc32() else None

    def combine(self, factors: Sequence[float], divisor: float = 1, scale: float = 1) -> Direct:
        """sum(factors v) / divisor * scale, plus the base where there is one."""
        weights = np.array(factors, np.float32)
        return self._direct(self._task(_COMBINE, weights=weights, divisor=np.float32(divisor), scale=np.float32(scale)))

    def products(self) -> Array:
        """All inner products [count, count] over the tensor."""
        total = np.zeros((self.count, self.count))
        self._whole(self._task(_PRODUCTS, sums=total))
        return total + np.tril(total, -1).T

    def mix(self, weights: Sequence[float], prunings: Array, consensus: bool, divisor: float, scale: float) -> Direct:
        """Task arithmetic and its family; see mix.h. `prunings` [count]: PRUNING records."""
        what: dict[str, Any] = {"weights": np.array(weights, np.float32), "how": prunings.copy()}
        ranked, columns = np.count_nonzero(prunings["kind"] == 4), self.inputs.columns
        if ranked:
            what["scratch"] = np.empty((ranked + 1) * self.block + 4 * columns + 16, np.float32)
        numbers = {"consensus": consensus, "divisor": divisor, "scale": scale, "columns": columns}
        return self._direct(self._task(_MIX, **what, **numbers))

    def squares(self, value: float, last: int) -> Array:
        """Sums of squared differences per model, of what the cut at `value`, `last` selects by variance."""
        sums = np.zeros(self.count)
        self._whole(self._task(_SCE, value=value, last=last, sums=sums))
        return sums

    def sce(self, value: float, last: int, weights: Sequence[float], smallest: float) -> Direct:
        """The merge by SCE under that cut."""
        factors = np.array(weights, np.float32)
        return self._direct(self._task(_SCE, value=value, last=last, weights=factors, smallest=smallest))

    def scores(self, variance: bool) -> Callable[[int, int], list[Array]]:
        """|difference| of each model, or the variance of their differences; as a Surveyor where files are read."""
        return Scores(self, variance) if self.feeds is None else StreamedScores(self, variance)

    def _task(self, kind: int, **fields: Any) -> _Task:
        return _Task(kind, count=self.count, based=self.based, **fields)

    def _direct(self, task: _Task) -> Direct:
        def run(start: int, stop: int) -> Array:
            self.c.apply(task.at, *self.held(start, stop), self.out.ctypes.data, start, stop - start)
            return self.out[: stop - start]

        def pour(start: int, stop: int, target: Target) -> None:
            kind = int(target.stored == "BF16")
            sink = np.array((target.handle, target.place, kind, target.crc, 0, self.narrow.ctypes.data), _SINK)
            self.stream(task, start, stop, sink)
            target.crc = int(sink["crc"])

        return Direct(run, pour if self.feeds is not None else None)

    def _whole(self, task: _Task) -> None:
        if self.feeds is not None:
            self.stream(task, 0, self.inputs.size, None)
            return
        for start, stop in self.inputs.spans():
            self.c.apply(task.at, *self.held(start, stop), None, start, stop - start)

    def stream(self, task: _Task, start: int, stop: int, sink: Array | None) -> None:
        """The task on elements [start, stop) of files. Raises as reading them does, or OSError when writing fails."""
        to = None if sink is None else sink.ctypes.data
        assert self.feeds is not None
        at = self.c.stream(task.at, self.feeds.ctypes.data, self.out.ctypes.data, start, stop, self.block, to)
        if sink is not None and sink["failed"]:
            raise OSError(int(sink["failed"]), os.strerror(int(sink["failed"])))
        self.check(at, stop)

    def check(self, at: int, stop: int) -> None:
        """Raise what the block at `at` is refused for, where a kernel stopped there."""
        if at < 0:
            return
        for one in self.tensors:
            _held(one, at, min(at + self.block, stop))
        raise TrineError(
            f"{self.inputs.name}: elements from {at:,} on could not be read, and now can; is the file changing?"
        )

    def held(self, start: int, stop: int) -> tuple[Any, Any]:
        """Addresses of the sources and of their kinds for a block; the caller's call must come at once."""
        arrays = [_held(one, start, stop) for one in self.tensors]
        self._sources = np.array([one.ctypes.data for one in arrays], np.uint64)
        self._kinds = np.array([one.dtype == np.uint16 for one in arrays], np.int32)
        self._arrays = arrays
        return self._sources.ctypes.data, self._kinds.ctypes.data


class _Task:
    """A `task` record of mix.h and the arrays it points to."""

    def __init__(self, kind: int, **fields: Any) -> None:
        self.record, self.alive = np.zeros((), _TASK), list(fields.values())
        self.record["kind"] = kind
        for name, value in fields.items():
            self.record[name] = value.ctypes.data if isinstance(value, np.ndarray) else value
        self.at = self.record.ctypes.data


class Scores:
    """Scores of elements [start, stop), an array per stream."""

    def __init__(self, kernels: Fused, variance: bool) -> None:
        self.kernels, self.streams = kernels, 1 if variance else kernels.count
        self.task = _Task(_COMBINE, count=kernels.count, based=1, variance=variance)

    def __call__(self, start: int, stop: int) -> list[Array]:
        out = np.empty((self.streams, stop - start), np.float32)
        self.kernels.c.score(self.task.at, *self.kernels.held(start, stop), out.ctypes.data, stop - start)
        return list(out)


class StreamedScores(Scores):
    """Scores that kernels search by themselves; a Surveyor of methods/select.py."""

    def sample(self, starts: Sequence[int], count: int) -> Array:
        """[streams, pieces, count]: scores of as many elements from each of `starts` on."""
        kernels, places = self.kernels, np.array(starts, np.int64)
        out = np.empty((len(starts), self.streams, count), np.float32)
        assert kernels.feeds is not None
        where = (places.ctypes.data, len(starts), count, out.ctypes.data)
        kernels.check(kernels.c.sample(self.task.at, kernels.feeds.ctypes.data, *where), kernels.inputs.size)
        return out.swapaxes(0, 1)

    def survey(self, brackets: Sequence[tuple[int, float, float]], most: int) -> list[Seen]:
        """What each (stream, low, high) finds in one pass; up to `most` inside are kept."""
        kernels, size = self.kernels, self.kernels.inputs.size
        records, alive = np.zeros(len(brackets), _BRACKET), []
        for i, (stream, low, high) in enumerate(brackets):
            counts = np.empty((-(-size // kernels.block), 5), np.int64)
            values = np.empty(most + _TILE + 16, np.float32)
            records[i] = (stream, low, high, counts.ctypes.data, values.ctypes.data, len(values), 0)
            alive.append((counts, values))
        assert kernels.feeds is not None
        where = (size, kernels.block, records.ctypes.data, len(records))
        kernels.check(kernels.c.survey(self.task.at, kernels.feeds.ctypes.data, *where), size)
        kept = (int(one) for one in records["kept"])
        return [
            Seen(counts, values[:n].copy() if n <= most else None)
            for n, (counts, values) in zip(kept, alive, strict=True)
        ]


def _feeds(tensors: Sequence[Readable], block: int) -> Array | None:
    """`feed` records, where every tensor is one; the numbers of a block lie in the tensors' buffers."""
    found = [one.feed(block) if isinstance(one, Fed) else None for one in tensors]
    records = np.zeros(len(found), _FEED)
    for i, one in enumerate(found):
        if one is None:
            return None
        records[i] = (one.handle, one.place, one.bf16, one.finite, one.buffer.ctypes.data)
    return records


def _held(one: Readable, start: int, stop: int) -> Array:
    array = one.held(start, stop) if isinstance(one, Held) else one.read(start, stop)
    return array if array.dtype == np.uint16 else np.ascontiguousarray(array, np.float32)
