"""Experts of other models in the order of the reference model's, layer by layer, before they are merged.

The order of a layer's experts means nothing by itself: permuting experts together with their rows of the router gives
the same function, so the third expert of one model need not be like the third of another. The permutation P of each
model and layer maximises <W_reference, P W_model> over all weights that it moves, experts and router (weight matching,
Ainsworth et al. 2022, arXiv:2209.04836, section 3.2), which minimises the squared distance. Where the router chooses
groups of experts first (`n_group`), whole groups are matched, and experts inside them.

Memory: a slab of columns of one layer's experts, twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from trine.errors import BadInput
from trine.manifest import digest_of, write_file
from trine.merge.assignment import assign
from trine.merge.dtypes import Array
from trine.merge.gather import Gather, rows_in_order
from trine.merge.jobs import Job, Plan, Tensor
from trine.merge.operands import readable
from trine.merge.source import Buffers, Files
from trine.progress import Progress, silent

_EXPERT = re.compile(r"^(.*\.experts)\.(\d+)\.(.+)$")
_STACKED = re.compile(r"^(.*\.experts)\.([^.\d]+.*)$")
_ROUTER = re.compile(r"^(.*?\.)((?:gate|router)(?:\..+)?|expert_bias|e_score_correction_bias)$")
_SLAB_BYTES = 64 << 20

Read = Callable[[Tensor, int, int], Array]
"""Elements [start, stop) of a tensor as fp32, what an adapter adds among them."""


@dataclass
class Layer:
    """The jobs that a permutation of one layer's experts moves, by their numbers."""

    stem: str
    """`model.layers.3.mlp.experts`."""
    single: dict[str, dict[int, int]] = field(default_factory=dict)
    """Kind of weight to expert to the job's number, where each expert has a tensor of its own."""
    rows: list[int] = field(default_factory=list)
    """Numbers of jobs with one entry per expert along the first axis: stacked experts, router, expert bias."""
    router: bool = False


Orders = list[list[list[int]]]
"""By layer and by input but the reference: which of the input's experts comes at each place."""


def align_experts(plan: Plan, progress: Progress = silent, kept: Path | None = None) -> Plan:
    """The plan with every model's experts in the order of the base's, or of the first model's where there is no base.

    Reads the experts once; not at all when the file `kept` has their orders, which are written there otherwise. Raises
    BadInput as `expert_layers` does, and when an expert holds NaN or infinity.
    """
    layers = expert_layers(plan.jobs)
    key = _key(plan, layers) if kept else ""
    orders = _kept_orders(kept, key) if kept else None
    if orders is None:
        orders = _all_orders(plan, layers, progress)
        if kept:
            write_file(kept, json.dumps({"of": key, "orders": orders}) + "\n")
    jobs, moved = list(plan.jobs), {}
    for layer, of_layer in zip(layers, orders, strict=True):
        for tensor, order in enumerate(of_layer, 1):
            _reorder(jobs, plan.jobs, layer, tensor, order)
            away = sum(place != expert for place, expert in enumerate(order))
            model = _inputs(plan.jobs[_first(layer)])[tensor].model
            moved[str(model)] = moved.get(str(model), 0) + away
    notes = [f"experts of '{model}' aligned in {len(layers)} layers: {count:,} moved" for model, count in moved.items()]
    return replace(plan, jobs=jobs, notes=[*plan.notes, *notes], aligned=True)


def _all_orders(plan: Plan, layers: list[Layer], progress: Progress) -> Orders:
    files, buffers, orders = Files(), Buffers(), []

    def read(tensor: Tensor, start: int, stop: int) -> Array:
        return readable(tensor, files, buffers).read(start, stop).copy()

    try:
        for done, layer in enumerate(layers):
            progress(done, len(layers), "align: layers of experts")
            orders.append(list(_orders(plan, layer, read)))
    finally:
        files.close()
    progress(len(layers), len(layers), "align: layers of experts")
    return orders


def _key(plan: Plan, layers: list[Layer]) -> str:
    """What orders depend on: the tensors that move, and the sizes and times of their files."""
    moving = [_inputs(plan.jobs[number]) for layer in layers for number in _numbers(layer)]
    files = sorted({piece.file for tensors in moving for tensor in tensors for piece in tensor.pieces})
    stamps = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return digest_of([[[str(one.model), one.name, one.change] for one in tensors] for tensors in moving] + stamps)


def _kept_orders(kept: Path, key: str) -> Orders | None:
    try:
        found = json.loads(kept.read_bytes())
        return found["orders"] if found["of"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _inputs(job: Job) -> tuple[Tensor, ...]:
    """The reference first."""
    return (job.base, *job.models) if job.base else job.models


def _first(layer: Layer) -> int:
    return next((place for one in layer.single.values() for place in one.values()), layer.rows[0] if layer.rows else 0)


def _numbers(layer: Layer) -> list[int]:
    """Every job of the layer that moves."""
    return [number for one in layer.single.values() for number in one.values()] + layer.rows


def expert_layers(jobs: list[Job]) -> list[Layer]:
    """Every layer with experts, in the order of the jobs.

    Raises BadInput when there is none, a layer has no router, or its weights differ in their number of experts.
    """
    found: dict[str, Layer] = {}
    for number, job in enumerate(jobs):
        if single := _EXPERT.match(job.name):
            layer = found.setdefault(single[1], Layer(single[1]))
            layer.single.setdefault(single[3], {})[int(single[2])] = number
        elif stacked := _STACKED.match(job.name):
            found.setdefault(stacked[1], Layer(stacked[1])).rows.append(number)
    for number, job in enumerate(jobs):
        router = _ROUTER.match(job.name)
        layer = found.get(f"{router[1]}experts") if router else None
        if layer and number not in layer.rows:
            layer.rows.append(number)
            layer.router = True
    if not found:
        raise BadInput("--align-experts: no tensor named *.experts.*; these models have no experts to align")
    for layer in found.values():
        _check(jobs, layer)
    return list(found.values())


def _check(jobs: list[Job], layer: Layer) -> None:
    """Every weight has as many experts, the router is there, and every job has the same inputs."""
    counts = {jobs[number].name: (jobs[number].shape or (1,))[0] for number in layer.rows}
    counts |= {f"{layer.stem}.*.{kind}": len(one) for kind, one in layer.single.items()}
    if len(set(counts.values())) > 1:
        held = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise BadInput(f"--align-experts: {layer.stem}: numbers of experts differ: {held}")
    if not layer.router:
        raise BadInput(
            f"--align-experts: {layer.stem}: no router beside it (gate, router or expert_bias), whose rows would have "
            "to move with the experts"
        )
    numbers = _numbers(layer)
    held = [(len(_inputs(jobs[number])), jobs[number].method) for number in numbers]
    if len(set(held)) > 1:
        odd = next(number for number, one in zip(numbers, held, strict=True) if one != held[0])
        raise BadInput(f"--align-experts: {jobs[odd].name}: not merged from every model, as {jobs[numbers[0]].name} is")


def _orders(plan: Plan, layer: Layer, read: Read) -> Iterator[list[int]]:
    """Which expert of the input comes at each place, for every input but the reference."""
    tensors = _inputs(plan.jobs[_first(layer)])
    count = len(next(iter(layer.single.values()))) if layer.single else plan.jobs[layer.rows[0]].shape[0]
    gains = np.zeros((len(tensors), count, count))
    for weights in _weights(plan.jobs, layer, count):
        _add_products(gains, weights, read)
    if not np.isfinite(gains).all():
        raise BadInput(f"--align-experts: {layer.stem}: holds NaN or infinity, which nothing can be compared with")
    for i in range(1, len(tensors)):
        config = plan.models[tensors[i].model].config
        groups = (config.get("text_config") or config).get("n_group") or 1
        yield match(gains[i], groups if count % groups == 0 else 1)


_Piece = tuple[Tensor, int]
"""A tensor and the element at which one expert's numbers begin."""


def _weights(jobs: list[Job], layer: Layer, count: int) -> Iterator[tuple[int, list[list[_Piece]]]]:
    """(numbers per expert, for each input the place of every expert) of each weight that moves."""
    for places in layer.single.values():
        inputs = [_inputs(jobs[places[expert]]) for expert in range(count)]
        size = math.prod(jobs[places[0]].shape)
        yield size, [[(one[i], 0) for one in inputs] for i in range(len(inputs[0]))]
    for number in layer.rows:
        size = math.prod(jobs[number].shape[1:])
        yield size, [[(tensor, e * size) for e in range(count)] for tensor in _inputs(jobs[number])]


def _add_products(gains: Array, weights: tuple[int, list[list[_Piece]]], read: Read) -> None:
    """Add the inner products of the reference's experts with every input's, a slab of columns at a time."""
    size, inputs = weights
    width = max(1, min(size, _SLAB_BYTES // (8 * len(inputs[0]))))
    for start in range(0, size, width):
        stop = min(start + width, size)
        slabs = (np.stack([read(t, at + start, at + stop) for t, at in pieces]) for pieces in inputs)
        reference = next(slabs)
        for i, slab in enumerate(slabs, 1):
            gains[i] += reference @ slab.T


def match(gains: Array, groups: int = 1) -> list[int]:
    """Which expert (column) comes at each place (row) for the largest sum of gains [E, E]; groups stay whole."""
    size = len(gains) // groups
    if groups == 1:
        return assign(gains)
    blocks = gains.reshape(groups, size, groups, size).swapaxes(1, 2)
    inner = [[assign(block) for block in row] for row in blocks]
    totals = [
        [block[np.arange(size), inner[i][j]].sum() for j, block in enumerate(row)] for i, row in enumerate(blocks)
    ]
    return [j * size + expert for i, j in enumerate(assign(np.array(totals))) for expert in inner[i][j]]


def _reorder(jobs: list[Job], before: list[Job], layer: Layer, number: int, order: list[int]) -> None:
    """Give the jobs the tensors of input `number` in another order of experts."""
    for places in layer.single.values():
        for place, expert in enumerate(order):
            jobs[places[place]] = _with(jobs[places[place]], number, _inputs(before[places[expert]])[number])
    for one in layer.rows:
        tensor = _inputs(before[one])[number]
        jobs[one] = _with(jobs[one], number, replace(tensor, gather=Gather((tensor,), rows_in_order(order))))


def _with(job: Job, number: int, tensor: Tensor) -> Job:
    """The job with another tensor at place `number` of `_inputs`; never the base's place, which is the reference."""
    models = list(job.models)
    models[number - (job.base is not None)] = tensor
    return replace(job, models=tuple(models))
