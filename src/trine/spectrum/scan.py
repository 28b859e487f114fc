"""A model folder to a scan: one JSON of what each matrix's singular values say, resumable matrix by matrix.

What is finished lies in journals beside the output, so that the same command goes on after it was stopped, and so that
ranks of `torchrun` meet there: the first waits for the others' lines and writes the scan.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trine import __version__
from trine.errors import BadInput, TrineError
from trine.manifest import write_file
from trine.progress import Progress, silent
from trine.spectrum.journal import Journal, journal_of, journals, take_up
from trine.spectrum.matrices import Matrix, matrices, place
from trine.spectrum.measure import Measure, measure_matrix
from trine.spectrum.sharding import device_of, rank, shared, worked
from trine.weights.hub import model_folder
from trine.weights.index import TensorInfo
from trine.weights.reader import TensorReader

FORMAT = "trine-spectrum-1"
_POLL_SECONDS, _PATIENCE_SECONDS = 1.0, 1800.0
"""How often the first rank looks for the others' matrices, and how long it waits for another one."""


@dataclass(frozen=True)
class Where:
    """What a scan is computed by."""

    workers: int = 1
    """Threads that each scan a matrix."""
    device: str = "cpu"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""


def scan(
    model: str, out: Path, measure: Measure = "calibrated", progress: Progress = silent, where: Where | None = None
) -> dict[str, Any] | None:
    """Scan every matrix of `model` (a folder, or a repository in the Hub's cache) into the JSON file `out`.

    The scan, as written; None from a rank that is not the first, once its own share is done. Raises BadInput when `out`
    holds something else or the model cannot be read, before anything is computed; TrineError when a file changes
    meanwhile, or when other ranks finish nothing for half an hour.
    """
    where, own = where or Where(), rank()
    if where.workers < 1:
        raise BadInput(f"--workers {where.workers}: expected one or more")
    device, folder = device_of(where.device, own), model_folder(model)
    tensors = TensorReader(folder).tensors
    found, others = matrices(tensors)
    if not found:
        raise BadInput(f"{folder}: holds no matrix; expected tensors of two dimensions")
    head = {"format": FORMAT, "model": model, "measure": measure, "files": _stamps(tensors)}
    out.parent.mkdir(parents=True, exist_ok=True)
    done = take_up(out, head)
    if out.exists():
        return _finished(out, head)
    share = shared(found, _cost, own)

    def make() -> Callable[[Matrix], dict[str, Any]]:
        reader = TensorReader(folder)
        return lambda one: _scan_one(reader, one, measure, device)

    shown = _Shown(progress, share, done)
    lines = Journal(out, head, own.number)
    try:
        for one, event in worked([one for one in share if one.name not in done], make, where.workers):
            lines.write(one.name, event)
            done[one.name] = event
            shown.finished(one)
    finally:
        lines.close()
    if own.number:
        return None
    if own.of > 1:
        done = _await(out, head, found, progress)
    if _stamps(tensors) != head["files"]:
        raise TrineError(f"{folder}: a file changed while it was scanned; remove {journal_of(out)}* and scan again")
    record = _record(head, found, others, tensors, done)
    write_file(out, _text(record))
    for path in journals(out):
        path.unlink(missing_ok=True)
    return record


class _Shown:
    """How far the scan is, in millions of multiplications."""

    def __init__(self, progress: Progress, share: list[Matrix], done: dict[str, Any]) -> None:
        finished = [one for one in share if one.name in done]
        self._progress, self._of, self._count = progress, len(share), len(finished)
        self._work, self._done = sum(map(_cost, share)), sum(map(_cost, finished))
        self._show("")

    def finished(self, matrix: Matrix) -> None:
        self._count += 1
        self._done += _cost(matrix)
        self._show(f", {matrix.name}")

    def _show(self, last: str) -> None:
        text = f"scan: million products, matrix {self._count:,} of {self._of:,}{last}"
        self._progress(self._done, self._work, text)


def _await(out: Path, head: dict[str, Any], found: list[Matrix], progress: Progress) -> dict[str, dict[str, Any]]:
    """What all ranks finished, once that is everything."""
    seen, since = -1, time.monotonic()
    while True:
        done = take_up(out, head)
        missing = sum(one.name not in done for one in found)
        if not missing:
            return done
        if len(done) > seen:
            seen, since = len(done), time.monotonic()
        if time.monotonic() - since > _PATIENCE_SECONDS:
            raise TrineError(
                f"{out}: {missing:,} matrices of other ranks are missing and none came for "
                f"{_PATIENCE_SECONDS / 60:.0f} minutes; run the same command again to go on"
            )
        progress(len(done), len(found), "ranks: matrices of all ranks")
        time.sleep(_POLL_SECONDS)


def _cost(matrix: Matrix) -> int:
    """Millions of multiplications: the Gram matrix and its eigenvalues."""
    small, large = sorted(matrix.shape)
    return max(1, (small * small * large + 4 * small**3) // 1_000_000)


def _scan_one(reader: TensorReader, matrix: Matrix, measure: Measure, device: torch.device) -> dict[str, Any]:
    values = reader.read(matrix.tensor)
    if matrix.index is not None and matrix.rows is not None:
        values = values[matrix.index, slice(*matrix.rows)]
    result = measure_matrix(values, measure, device)
    module = {"type": place(matrix.name).type, "shape": list(matrix.shape), **result.numbers}
    if matrix.index is not None:
        module["stored_as"] = [matrix.tensor, matrix.index, list(matrix.rows or ())]
    return {
        "module": module,
        "by": result.by,
        "error": result.error,
        "problem": result.problem,
        "largest": result.largest,
    }


def _stamps(tensors: dict[str, TensorInfo]) -> dict[str, list[int]]:
    """Size and time of change of each file, by name."""
    files = sorted({info.file for info in tensors.values()})
    return {file.name: [(stat := file.stat()).st_size, stat.st_mtime_ns] for file in files}


def _finished(out: Path, head: dict[str, Any]) -> dict[str, Any]:
    try:
        record = json.loads(out.read_bytes())
        meta = record["meta"]
        if all(meta[name] == value for name, value in head.items()):
            return record
    except (ValueError, KeyError, TypeError):
        pass
    raise BadInput(f"{out}: already exists and is not this scan; name another --out, or remove it first")


def _record(
    head: dict[str, Any],
    found: list[Matrix],
    others: list[str],
    tensors: dict[str, TensorInfo],
    done: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    held = sum(math.prod(info.shape) for name, info in tensors.items() if name not in set(others))
    meta = head | {
        "trine": __version__,
        "matrices": len(found),
        "parameters": {
            "in_matrices": held,
            "seen": sum(one.parameters for one in found if one.name in done),
            "elsewhere": sum(math.prod(tensors[name].shape) for name in others),
        },
        "not_matrices": others,
        "computed_by": dict(Counter(done[one.name]["by"] for one in found)),
        "snr_relative_error": max(done[one.name]["error"] for one in found),
        "largest": [done[one.name]["largest"] for one in found],
        "problems": {one.name: done[one.name]["problem"] for one in found if done[one.name]["problem"]},
    }
    return {"meta": meta, "modules": {one.name: done[one.name]["module"] for one in found}}


def _text(record: dict[str, Any]) -> str:
    """Strict JSON, a line per module."""
    modules = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(one, allow_nan=False)}" for name, one in record["modules"].items()
    )
    return f'{{"meta": {json.dumps(record["meta"], indent=1, allow_nan=False)},\n"modules": {{\n{modules}\n}}}}\n'
