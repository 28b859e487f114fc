"""A model folder to a scan: one JSON of what each matrix's singular values say, resumable matrix by matrix.

What is finished lies in a journal beside the output, one line per matrix, so that the same command goes on after it
was stopped. The journal is removed when the scan is complete.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from trine import __version__
from trine.errors import BadInput, TrineError
from trine.manifest import write_file
from trine.progress import Progress, silent
from trine.spectrum.matrices import Matrix, matrices, place
from trine.spectrum.measure import Measure, measure_matrix
from trine.weights.hub import model_folder
from trine.weights.index import TensorInfo
from trine.weights.reader import TensorReader

FORMAT = "trine-spectrum-1"


def scan(model: str, out: Path, measure: Measure = "calibrated", progress: Progress = silent) -> dict[str, Any]:
    """Scan every matrix of `model` (a folder, or a repository in the Hub's cache) into the JSON file `out`.

    The scan, as written. Raises BadInput when `out` holds something else or the model cannot be read, before
    anything is computed; TrineError when a file changes meanwhile.
    """
    folder = model_folder(model)
    reader = TensorReader(folder)
    found, others = matrices(reader.tensors)
    if not found:
        raise BadInput(f"{folder}: holds no matrix; expected tensors of two dimensions")
    head = {"format": FORMAT, "model": model, "measure": measure, "files": _stamps(reader.tensors)}
    if out.exists():
        return _finished(out, head)
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = journal_of(out)
    done = _take_up(journal, head)
    work, finished = sum(map(_cost, found)), sum(_cost(one) for one in found if one.name in done)
    with journal.open("ab") as lines:
        for number, one in enumerate(found):
            progress(finished, work, f"scan: million products, matrix {number + 1:,} of {len(found):,}, {one.name}")
            if one.name in done:
                continue
            done[one.name] = _scan_one(reader, one, measure)
            lines.write(json.dumps({"name": one.name, **done[one.name]}, allow_nan=False).encode() + b"\n")
            lines.flush()
            finished += _cost(one)
    progress(work, work, f"scan: million products, {len(found):,} matrices")
    if _stamps(reader.tensors) != head["files"]:
        raise TrineError(f"{folder}: a file changed while it was scanned; remove {journal} and scan again")
    record = _record(head, found, others, reader.tensors, done)
    write_file(out, _text(record))
    journal.unlink()
    return record


def journal_of(out: Path) -> Path:
    """Where an unfinished scan keeps what is finished."""
    return out.with_name(f".{out.name}.journal")


def _cost(matrix: Matrix) -> int:
    """Millions of multiplications: the Gram matrix and its eigenvalues."""
    small, large = sorted(matrix.shape)
    return max(1, (small * small * large + 4 * small**3) // 1_000_000)


def _scan_one(reader: TensorReader, matrix: Matrix, measure: Measure) -> dict[str, Any]:
    values: Tensor = reader.read(matrix.tensor)
    if matrix.index is not None and matrix.rows is not None:
        values = values[matrix.index, slice(*matrix.rows)]
    result = measure_matrix(values, measure)
    module = {"type": place(matrix.name).type, "shape": list(matrix.shape), **result.numbers}
    if matrix.index is not None:
        module["stored_as"] = [matrix.tensor, matrix.index, matrix.rows]
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


def _take_up(journal: Path, head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the journal says is finished; it is begun when there is none. A line that was cut is dropped."""
    whole = journal.read_bytes().rpartition(b"\n")[0] if journal.exists() else b""
    if not whole:
        journal.write_bytes(json.dumps(head).encode() + b"\n")
        return {}
    first, *events = (json.loads(line) for line in whole.split(b"\n"))
    if first != head:
        raise BadInput(
            f"{journal}: of another model or measure, or files changed since; remove it, or name another --out"
        )
    os.truncate(journal, len(whole) + 1)
    return {event.pop("name"): event for event in events}


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
