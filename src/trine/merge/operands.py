"""A job's tensors as its method reads them: out of their files, with adapters added and rows in their order."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trine.merge.adapter import LowRank
from trine.merge.dtypes import Array, work_type
from trine.merge.gather import Gather
from trine.merge.jobs import Job, Tensor
from trine.merge.methods.inputs import Inputs, Readable
from trine.merge.methods.table import by_row
from trine.merge.source import Adapted, Buffers, Files, Gathered, Stored
from trine.weights.index import TensorInfo


def operands(
    job: Job, files: Files, buffers: Buffers, mergekit: bool = False, seed: int = 0, finite: bool = True
) -> Inputs:
    """The inputs of one job. `mergekit`: its rounding is followed. `finite`: NaN and infinity raise."""
    cast = job.work if mergekit else None
    kinds = {piece.dtype for tensor in job.inputs for piece in tensor.pieces} | {job.stored, job.work}
    work = work_type(job.work if cast else "F64" if "F64" in kinds else "F32").type
    reading = _Reading(files, buffers, work, cast, finite)
    readers = [reading.of(tensor, slot) for slot, tensor in enumerate(job.inputs)]
    return Inputs(
        job.shape,
        readers[: len(job.models)],
        readers[-1] if job.base else None,
        job.each,
        job.shared,
        cast,
        seed,
        job.name,
        [str(tensor.model) for tensor in job.models],
        work,
        by_row(job.method, job.shared),
    )


def readable(tensor: Tensor, files: Files, buffers: Buffers) -> Readable:
    """One tensor in fp32, with what an adapter adds; NaN and infinity pass."""
    return _Reading(files, buffers, np.float32, None, False).of(tensor, 0)


@dataclass(frozen=True)
class _Reading:
    """What all readers of a job share."""

    files: Files
    buffers: Buffers
    work: Any
    cast: str | None
    finite: bool

    def of(self, tensor: Tensor, slot: Hashable) -> Readable:
        """The reader of one tensor, with memory of its own."""
        if tensor.gather is not None:
            return self._gathered(tensor.gather, tensor.info, slot)
        if tensor.adapter is not None:
            return self._adapted(tensor, tensor.adapter, slot)
        return self._stored(tensor, slot, self.cast)

    def _gathered(self, gather: Gather, info: TensorInfo, slot: Hashable) -> Gathered:
        tables = [self.of(table, (slot, "table")) for table in gather.tables]  # read in turn, so memory is shared
        width = math.prod(info.shape[1:])
        return Gathered(
            tables, gather.rows, width, lambda n: self.buffers.get((slot, "gathered"), n, self.work), self.cast
        )

    def _stored(self, tensor: Tensor, slot: Hashable, cast: str | None) -> Stored:
        return Stored(tensor, self.files.open(tensor.info.file), self.buffers, slot, self.work, cast, self.finite)

    def _adapted(self, tensor: Tensor, change: LowRank, slot: Hashable) -> Adapted:
        infos = zip(change.names, (change.down, change.up), strict=True)
        down, up = (self._whole(Tensor(tensor.model, name, info), slot, info) for name, info in infos)
        if change.transposed:
            down, up = up.T, down.T
        own = tensor.info.dtype if self.cast else None
        return Adapted(self._stored(tensor, slot, None), down, up * self.work(change.scale), own, self.cast)

    def _whole(self, tensor: Tensor, slot: Hashable, info: TensorInfo) -> Array:
        """A small tensor as an array."""
        return np.array(self._stored(tensor, slot, None).read(0, math.prod(info.shape))).reshape(info.shape)
