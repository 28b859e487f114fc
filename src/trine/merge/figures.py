"""What a merge did, in figures: sizes of the differences, angles between them, conflicts of sign, what was trimmed.

A second pass over inputs and output, block by block, with sums in fp64; memory is that of the workers' blocks and one
table per layer and per kind of tensor. Differences are taken from the base model, or from the first model where there
is no base.
"""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trine.merge.config import ModelReference
from trine.merge.dtypes import STORED, Array
from trine.merge.engine import Options
from trine.merge.jobs import Job, Plan, Tensor
from trine.merge.methods.inputs import Inputs
from trine.merge.methods.prune import pruned
from trine.merge.methods.task import THINNED
from trine.merge.names import comes_after, place_of
from trine.merge.operands import operands
from trine.merge.source import Buffers, Files, Stored
from trine.progress import Progress, silent
from trine.weights.index import read_index


@dataclass
class Sums:
    """Sums over elements; those of two sets of elements add up. Arrays have an entry per model with a difference."""

    names: list[str]
    elements: int = 0
    reference: float = 0.0
    """Squared norm of the reference."""
    products: Array = field(default_factory=lambda: np.zeros((0, 0)))
    """Inner products of the differences, the merged one last."""
    shared: int = 0
    """Elements that two or more differences change."""
    conflicts: int = 0
    """Of those, elements where two have opposite signs."""
    unchanged: int = 0
    """Elements of the output that equal the reference."""
    nonzero: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    dropped: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """Elements that were not zero and were trimmed."""
    outvoted: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """Elements that stayed and have not the elected sign."""

    def __post_init__(self) -> None:
        count = len(self.names)
        self.products = np.zeros((count + 1, count + 1))
        self.nonzero, self.dropped, self.outvoted = np.zeros((3, count), np.int64)

    def add(self, other: Sums) -> None:
        """Take in the sums of other elements; models are matched by name."""
        where = [self.names.index(name) for name in other.names]
        self.elements += other.elements
        self.reference += other.reference
        self.products[np.ix_([*where, -1], [*where, -1])] += other.products
        for key in ("shared", "conflicts", "unchanged"):
            setattr(self, key, getattr(self, key) + getattr(other, key))
        for key in ("nonzero", "dropped", "outvoted"):
            getattr(self, key)[where] += getattr(other, key)

    def record(self) -> dict[str, Any]:
        """Norms, cosines (None for a difference that is 0) and shares, as JSON holds them."""
        norms = np.sqrt(np.maximum(np.diag(self.products), 0))
        scale = np.outer(norms, norms)
        cosines = np.divide(self.products, scale, out=np.full_like(scale, np.nan), where=scale > 0)
        return {
            "elements": self.elements,
            "reference_norm": float(np.sqrt(self.reference)),
            "norms": norms.tolist(),
            "cosines": [[None if np.isnan(one) else round(float(one), 6) for one in row] for row in cosines],
            "sign_conflicts": self.conflicts / self.shared if self.shared else None,
            "unchanged": self.unchanged / max(1, self.elements),
            "trimmed": (self.dropped / np.maximum(1, self.nonzero)).tolist(),
            "outvoted": (self.outvoted / np.maximum(1, self.nonzero)).tolist(),
        }


def figures(plan: Plan, out: Path, options: Options, progress: Progress = silent) -> dict[str, Any]:
    """Figures of the merge of `plan` into `out`, whole, by layer and by kind of tensor.

    Raises TrineError when an input or the output cannot be read.
    """
    reference = plan.recipe.base if plan.recipe.spec.base != "ignored" and plan.recipe.base else plan.donor
    names = [str(one) for one in plan.models if one != reference]
    merged = read_index(out)
    jobs = [
        job for job in plan.jobs if job.method == plan.recipe.method and all(t.info.dtype in STORED for t in job.inputs)
    ]
    total, layers, kinds = Sums(names), {}, {}
    local, files = threading.local(), Files()
    done, amount = 0, sum(job.bytes for job in jobs)
    for path in [*plan.files, *{info.file for info in merged.values()}]:
        files.open(path)

    def one(job: Job) -> Sums:
        if not hasattr(local, "buffers"):
            local.buffers = Buffers()
        output = Tensor(plan.donor, job.name, merged[job.name])
        return _measure(job, output, plan, reference, files, local.buffers, options)

    try:
        with ThreadPoolExecutor(options.workers) as pool:
            for job, sums in zip(jobs, pool.map(one, jobs), strict=True):
                for table in (total, _at(layers, _layer(job.name), names), _at(kinds, _kind(job.name), names)):
                    table.add(sums)
                done += job.bytes
                progress(done // 1_000_000, -(-amount // 1_000_000), "report: MB measured")
    finally:
        files.close()
    return {
        "method": plan.recipe.method,
        "reference": str(reference),
        "models": names,
        "trims": plan.recipe.method in THINNED,
        "votes": THINNED.get(plan.recipe.method, (None, False))[1],
        "total": total.record(),
        "layers": [{"layer": name, **layers[name].record()} for name in sorted(layers, key=_rank)],
        "kinds": [{"kind": name, **one.record()} for name, one in kinds.items()],
    }


def _at(tables: dict[Any, Sums], key: Any, names: list[str]) -> Sums:
    return tables.setdefault(key, Sums(names))


def _layer(name: str) -> int | str:
    place = place_of(name)
    return place.layer if place else "after" if comes_after(name) else "before"


def _rank(layer: int | str) -> tuple[int, int]:
    return (1, layer) if isinstance(layer, int) else (0 if layer == "before" else 2, 0)


def _kind(name: str) -> str:
    place = place_of(name)
    return re.sub(r"\.\d+\.", ".*.", place.rest if place else name).removeprefix(".").removesuffix(".weight")


def _measure(
    job: Job, output: Tensor, plan: Plan, reference: ModelReference, files: Files, buffers: Buffers, options: Options
) -> Sums:
    """The sums of one tensor. Where the reference is not among the inputs, its first input stands for it."""
    method = plan.recipe.method
    inputs = operands(job, files, buffers, options.mergekit, options.seed, not options.allow_nonfinite)
    merged = Stored(output, files.open(output.info.file), buffers, len(job.inputs), inputs.work, None, False)
    place = next((i for i, tensor in enumerate(job.models) if tensor.model == reference), 0)
    others = [i for i in range(len(job.models)) if job.base is not None or i != place]
    rules = THINNED[method][0](inputs) if method in THINNED and job.models else None
    sums = Sums([str(job.models[i].model) for i in others])
    for start, stop in inputs.spans():
        block = inputs.block(start, stop)
        base = block.base if block.base is not None else block.models[place]
        with np.errstate(invalid="ignore"):
            deltas = [inputs.q(block.models[i] - base) for i in others]
            change = merged.read(start, stop) - base
        if options.allow_nonfinite:
            base, change, *deltas = _finite([base, change, *deltas])
        _see(sums, base, deltas, change)
        if rules is not None:
            _see_trimmed(
                sums, inputs, [pruned(inputs, rules[i], d.copy(), start) for i, d in enumerate(deltas)], deltas, method
            )
    return sums


def _finite(arrays: list[Array]) -> list[Array]:
    """The arrays with 0 wherever one of them is NaN or infinite, as if nothing had happened there."""
    good = np.logical_and.reduce([np.isfinite(one) for one in arrays])
    return arrays if good.all() else [np.where(good, one, one.dtype.type(0)) for one in arrays]


def _see(sums: Sums, base: Array, deltas: list[Array], change: Array) -> None:
    sums.elements += len(base)
    sums.reference += float(np.dot(base, base.astype(np.float64)))
    wide = [one.astype(np.float64) for one in (*deltas, change)]
    sums.products += [[float(np.dot(left, right)) for right in wide] for left in wide]
    up, down = np.zeros((2, len(base)), np.int8)
    for i, delta in enumerate(deltas):
        sums.nonzero[i] += np.count_nonzero(delta)
        up += delta > 0
        down += delta < 0
    sums.shared += int(np.count_nonzero(up + down > 1))
    sums.conflicts += int(np.count_nonzero((up > 0) & (down > 0)))
    sums.unchanged += len(base) - int(np.count_nonzero(change))


def _see_trimmed(sums: Sums, inputs: Inputs, kept: list[Array], deltas: list[Array], method: str) -> None:
    for i, (left, delta) in enumerate(zip(kept, deltas, strict=True)):
        sums.dropped[i] += np.count_nonzero((left == 0) & (delta != 0))
    if THINNED[method][1]:
        weights = inputs.weights()
        total = sum(inputs.q(inputs.work(weight) * one) for weight, one in zip(weights, kept, strict=True))
        for i, one in enumerate(kept):
            voted = one * np.sign(weights[i])
            sums.outvoted[i] += np.count_nonzero(np.where(total >= 0, voted < 0, voted > 0))
