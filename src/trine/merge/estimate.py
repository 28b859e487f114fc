"""What a merge will take: bytes from the plan, time from the method tried on a few blocks of random numbers here."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

import numpy as np

from trine.merge.arithmetic import narrow, widen
from trine.merge.dtypes import Array
from trine.merge.engine import Options
from trine.merge.jobs import Job, Plan
from trine.merge.methods.inputs import BLOCK_ELEMENTS, Inputs, merged
from trine.merge.methods.table import METHODS, by_row

_ROWS = 1 << 20
_HASH_BYTES = 1 << 23


@dataclass(frozen=True)
class Estimate:
    """Sizes in bytes, time in seconds."""

    tensors: int
    read_bytes: int
    write_bytes: int
    memory_bytes: int
    """Anonymous memory: the interpreter, and the workers' blocks."""
    seconds: float
    """Wall time with the inputs in the page cache, or the disk as fast as that."""


def estimate(plan: Plan, options: Options) -> Estimate:
    """Estimate a plan on this machine; takes about a second."""
    widest = max((len(job.inputs) for job in plan.jobs), default=1)
    rows = (BLOCK_ELEMENTS if not _whole_rows(job) else max(BLOCK_ELEMENTS, _columns(job)) for job in plan.jobs)
    row = max(rows, default=BLOCK_ELEMENTS)
    memory = (96 << 20) + options.workers * (2 * widest + 6) * row * 8 + len(plan.jobs) * 4096
    seconds = (_merge_seconds(plan, options) + _hash_seconds(plan)) / options.workers + 0.3
    return Estimate(len(plan.jobs), plan.read_bytes, plan.write_bytes, memory, seconds)


def _columns(job: Job) -> int:
    return job.shape[-1] if job.shape else 1


def _whole_rows(job: Job) -> bool:
    return not job.copied and by_row(job.method, job.shared)


def _merge_seconds(plan: Plan, options: Options) -> float:
    """Seconds of one core for all merged tensors, from one pass over a smaller tensor of the most common kind."""
    jobs = [job for job in plan.jobs if not job.copied]
    if not jobs:
        return 0.0
    job = max(jobs, key=lambda one: one.bytes)
    rows = max(1, _ROWS // max(1, _columns(job)))
    shape = (rows, max(1, _columns(job)))
    rng = np.random.default_rng(0)
    tensors = [_Wide(rng.standard_normal(shape).astype(np.float32), job.stored) for _ in job.inputs]
    inputs = Inputs(
        shape,
        tensors[: len(job.models)],
        tensors[-1] if job.base else None,
        job.each,
        job.shared,
        job.work if options.mergekit else None,
        labels=[str(i) for i in range(len(job.models))],
        by_row=_whole_rows(job),
    )
    began = time.perf_counter()
    narrow(merged(METHODS[job.method], inputs).reshape(-1), job.stored)
    elements = sum(int(np.prod(one.shape, dtype=np.int64)) for one in jobs)
    return (time.perf_counter() - began) * elements / (shape[0] * shape[1])


class _Wide:
    """A tensor in memory that is widened on each read, as one from a file is."""

    def __init__(self, values: Array, stored: str) -> None:
        self.raw, self.stored = narrow(values.reshape(-1), stored), stored

    def read(self, start: int, stop: int) -> Array:
        raw = self.raw[start:stop]
        values = np.empty(len(raw), np.float32)
        widen(raw, self.stored, values)
        return values

    def held(self, start: int, stop: int) -> Array:
        return self.raw[start:stop] if self.stored == "BF16" else self.read(start, stop)


def _hash_seconds(plan: Plan) -> float:
    piece = bytes(_HASH_BYTES)
    began = time.perf_counter()
    hashlib.sha256(piece).digest()
    return (time.perf_counter() - began) * (plan.read_bytes + plan.write_bytes) / len(piece)
