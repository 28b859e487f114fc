"""Tensors out of files block by block, into buffers that a worker uses again and again."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trine.errors import TrineError
from trine.merge import dtypes
from trine.merge.arithmetic import widen
from trine.merge.dtypes import STORED, Array, rounded
from trine.merge.fused import finite_bf16
from trine.merge.gather import MEAN, PADDING, Rows
from trine.merge.jobs import Tensor
from trine.merge.methods.inputs import Feed, Readable


class NotFinite(TrineError):
    """An input holds NaN or infinity."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.name)
        self.tensor = tensor


class Files:
    """Input files, each opened once. Reads are positioned, so threads share them."""

    def __init__(self) -> None:
        self._handles: dict[Path, int] = {}

    def open(self, path: Path) -> int:
        """The file's handle."""
        if path not in self._handles:
            self._handles[path] = os.open(path, os.O_RDONLY)
        return self._handles[path]

    def close(self) -> None:
        """Close every file."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


class Buffers:
    """Arrays by purpose, kept and grown: one set per worker."""

    def __init__(self) -> None:
        self._arrays: dict[Any, Array] = {}

    def get(self, key: Any, count: int, dtype: Any) -> Array:
        """`count` uninitialised elements; the same memory for the same key."""
        found = self._arrays.get((key, dtype))
        if found is None or len(found) < count:
            found = self._arrays[key, dtype] = np.empty(max(count, 1 << 16), dtype)
        return found[:count]


class Stored:
    """A tensor in a file, as the methods read it. Raises NotFinite unless told otherwise."""

    def __init__(
        self, tensor: Tensor, handle: int, buffers: Buffers, slot: Hashable, work: Any, cast: str | None, finite: bool
    ) -> None:
        """`cast`: a type to round to on reading. `finite`: whether NaN and infinity are refused."""
        self.tensor, self.handle, self.buffers, self.slot = tensor, handle, buffers, slot
        self.work, self.cast, self.finite = work, cast, finite

    def read(self, start: int, stop: int) -> Array:
        """Elements [start, stop) in the type of the arithmetic; valid until the next read of this slot."""
        info = self.tensor.info
        kind = STORED[info.dtype]
        raw = self.buffers.get((self.slot, "raw"), stop - start, kind)
        read_into(self.handle, raw, info.offset + start * kind.itemsize, info.file)
        values = self.buffers.get((self.slot, "wide"), stop - start, self.work)
        if not widen(raw, info.dtype, values) and self.finite:
            raise NotFinite(self.tensor)
        if self.cast is not None and self.cast != info.dtype:
            values = rounded(values, self.cast)
        return values

    def held(self, start: int, stop: int) -> Array:
        """Elements [start, stop) as they are stored where that is bf16, else as `read` gives them."""
        info = self.tensor.info
        if info.dtype != "BF16" or self.cast is not None:
            return self.read(start, stop)
        raw = self.buffers.get((self.slot, "raw"), stop - start, STORED[info.dtype])
        read_into(self.handle, raw, info.offset + start * raw.itemsize, info.file)
        if self.finite and not finite_bf16(raw):
            raise NotFinite(self.tensor)
        return raw

    def feed(self, count: int) -> Feed | None:
        """See Fed."""
        info = self.tensor.info
        if self.cast is not None or info.dtype not in ("BF16", "F32"):
            return None
        raw = self.buffers.get((self.slot, "raw"), count, STORED[info.dtype])
        return Feed(self.handle, info.offset, info.dtype == "BF16", self.finite, raw)


class Adapted:
    """A weight with what an adapter adds to it, computed for the rows that are read.

    Memory: the adapter's two factors of this weight. `own`: the type that mergekit (through peft) rounds the sum to.
    """

    def __init__(self, stored: Stored, down: Array, up: Array, own: str | None, cast: str | None) -> None:
        """`down` [r, in] and `up` [out, r] as the rows and columns of the stored weight, scaled."""
        self.stored, self.left, self.right = stored, up, down
        self.own, self.cast = own, cast
        self.columns = down.shape[1]

    def read(self, start: int, stop: int) -> Array:
        """Elements [start, stop) of the sum; valid until the next read."""
        values = self.stored.read(start, stop)
        first, last = start // self.columns, -(-stop // self.columns)
        delta = (self.left[first:last] @ self.right).reshape(-1)
        values += delta[start - first * self.columns :][: stop - start]
        for kind in (self.own, self.cast):
            values = values if kind is None else rounded(values, kind)
        return values


class Gathered:
    """A table whose rows are rows of other tables, means of them, zeros, or the mean of the table itself."""

    def __init__(
        self, tables: Sequence[Readable], rows: Rows, width: int, out: Callable[[int], Array], cast: str | None
    ) -> None:
        """`width`: elements of a row. `out`: memory for so many elements. `cast`: a type that means are rounded to."""
        self.tables, self.rows, self.width, self.out, self.cast = tables, rows, width, out, cast
        self.starts = [start for start, _, _ in rows.runs]

    def read(self, start: int, stop: int) -> Array:
        """Elements [start, stop) of the table; valid until the next read."""
        return self._fill(self.out(stop - start), start, stop)

    def _fill(self, out: Array, start: int, stop: int) -> Array:
        run, place = bisect_right(self.starts, start // self.width) - 1, start
        while place < stop:
            _, kind, shift = self.rows.runs[run]
            run += 1
            end = min(stop, (self.starts[run] if run < len(self.starts) else self.rows.count) * self.width)
            out[place - start : end - start] = self._run(kind, shift, place, end)
            place = end
        return out

    def _run(self, kind: int, shift: int, start: int, stop: int) -> Array | float:
        if kind >= 0:
            return self.tables[kind].read(start + shift * self.width, stop + shift * self.width)
        if kind == MEAN:
            return self._mean_row(start // self.width, start % self.width, stop - start)
        if kind == PADDING:
            return np.resize(np.roll(self._mean, -(start % self.width)), stop - start)
        return 0.0

    def _mean_row(self, row: int, column: int, count: int) -> Array:
        """Part of a row that is the mean of several tables' rows; summed in the order of the tables."""
        total, used = None, 0
        for table, place in zip(self.tables, self.rows.places[row].tolist(), strict=True):
            if place >= 0:
                part = table.read(place * self.width + column, place * self.width + column + count)
                total = part.copy() if total is None else self._rounded(total + part)
                used += 1
        assert total is not None
        return self._rounded(total / used)

    def _rounded(self, values: Array) -> Array:
        return values if self.cast is None else rounded(values, self.cast)

    @cached_property
    def _mean(self) -> Array:
        """The mean of the rows that are not padding, [width]; reads the table once."""
        total, one = np.zeros(self.width, np.float64), np.empty(self.width, self.out(0).dtype)
        kept = np.flatnonzero(~self.rows.padded)
        for row in kept.tolist():
            total += self._fill(one, row * self.width, (row + 1) * self.width)
        return self._rounded((total / max(1, len(kept))).astype(one.dtype))


def read_into(handle: int, array: Array, offset: int, path: Path) -> None:
    """Fill `array` from a file. Raises TrineError when the file is too short by now or cannot be read."""
    view = array.data.cast("B")
    done = 0
    while done < len(view):
        try:
            count = os.preadv(handle, [view[done:]], offset + done)
        except OSError as error:
            raise TrineError(f"{path}: cannot be read at byte {offset + done} ({error.strerror})") from None
        if count == 0:
            raise TrineError(f"{path}: ends at byte {offset + done}, while it is read; the file was cut")
        done += count


def count_not_finite(tensor: Tensor, handle: int, block: int = 1 << 20) -> int:
    """How many elements of a tensor are NaN or infinite."""
    kind, size, count = STORED[tensor.info.dtype], int(np.prod(tensor.info.shape, dtype=np.int64)), 0
    for start in range(0, size, block):
        raw = np.empty(min(block, size - start), kind)
        read_into(handle, raw, tensor.info.offset + start * kind.itemsize, tensor.info.file)
        work = np.float64 if tensor.info.dtype == "F64" else np.float32
        count += int(np.count_nonzero(~np.isfinite(dtypes.widen(raw, tensor.info.dtype, np.empty(len(raw), work)))))
    return count
