"""A job's tensors as its method reads them."""

from __future__ import annotations

from trine.merge.dtypes import work_type
from trine.merge.methods.inputs import Inputs
from trine.merge.methods.table import by_row
from trine.merge.plan import Job
from trine.merge.source import Buffers, Files, Reordered, Stored


def operands(
    job: Job, files: Files, buffers: Buffers, mergekit: bool = False, seed: int = 0, finite: bool = True
) -> Inputs:
    """The inputs of one job. `mergekit`: its rounding is followed. `finite`: NaN and infinity raise."""
    cast = job.work if mergekit else None
    kinds = {tensor.info.dtype for tensor in job.inputs} | {job.stored, job.work}
    work = work_type(job.work if cast else "F64" if "F64" in kinds else "F32").type
    stored = [Stored(t, files.open(t.info.file), buffers, i, work, cast, finite) for i, t in enumerate(job.inputs)]
    ordered = [one if one.tensor.rows is None else Reordered(one, one.tensor.rows) for one in stored]
    return Inputs(
        job.shape,
        ordered[: len(job.models)],
        ordered[-1] if job.base else None,
        job.each,
        job.shared,
        cast,
        seed,
        job.name,
        [str(tensor.model) for tensor in job.models],
        work,
        by_row(job.method, job.shared),
    )
