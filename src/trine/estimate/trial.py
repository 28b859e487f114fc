"""From probes of a model with few layers to what all of its layers take.

The cost of a step is a constant and a share for each layer, so that two depths tell it for every depth: seconds of
forward and backward grow with the model's FLOPs, those of the optimizer with the layers' parameters, memory beyond
weights, gradients and optimizer state with the number of layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from trine.estimate.frozen import Frozen
from trine.estimate.point import BELOW, Point, kinds_of, point_of, spread
from trine.estimate.probe import Job
from trine.estimate.probing import Probes, ProbeTimeout
from trine.estimate.shape import dump_shape, layer_kinds, with_layers
from trine.estimate.size import Size, measure_size
from trine.model.shape import Shape
from trine.optim.config import OptimConfig
from trine.progress import Progress
from trine.train.config import EvalConfig, TrainConfig
from trine.train.meters import peak_flops
from trine.train.setup import pick_device, threads

BUDGET_SECONDS = 20.0
"""All probes of a plan together."""
_USUAL_MFU = 0.2
"""Guess, to choose the first probe's depth."""
_START_SECONDS = 1.5
"""Guess of what the first probe needs beside its steps; what it is seen to need counts for the next."""
_STEPS, _SHALLOW_STEPS = 5, 3
"""Of a probe, and of the smaller of two depths."""
_SHALLOW_SHARE = 0.3
"""Of the time, for the smaller of two depths."""
_DEEPER_STEPS = 3.25
"""Steps that the deeper one should have time for; its first is slow."""


@dataclass(frozen=True)
class Trial:
    """What a full step is expected to cost."""

    parts: dict[str, float]
    """Seconds by part: data, forward, backward, optimizer."""
    activations: int
    """What a micro-batch's forward pass keeps for the backward pass, bytes."""
    working: int
    """Most bytes beyond weights, gradients and optimizer state at any time: activations, the loss, temporary
    results, what the allocator and the matrix library keep."""
    layers: int
    """Most layers that a probe had."""
    seconds: float
    """Time the probes took."""

    def step_seconds(self, work: float = 1.0) -> float:
        """Seconds of a step with `work` times the FLOPs of the step that was probed."""
        update = self.parts["optimizer"]
        return update + work * (sum(self.parts.values()) - update)


def run_trial(
    shape: Shape,
    optim: OptimConfig,
    train: TrainConfig,
    memory: int,
    progress: Progress,
    frozen: Frozen | None = None,
) -> Trial | None:
    """Probe the whole model, or two depths of it, within twenty seconds; `frozen` says what of it is trained.

    None when `memory` bytes do not hold the smallest depth. Raises ProbeTimeout when there was no time for a step.
    """
    with Probes() as probes:
        prober = _Prober(shape, optim, train, memory, progress, probes, frozen)
        points = _probe_depths(prober, prober.kinds)
        return _extrapolate(points, prober) if points else None


def _probe_depths(prober: _Prober, kinds: Sequence[str]) -> list[Point]:
    """The whole model, or as few layers as have every kind and then as many as time and memory allow."""
    least, points = sorted({kinds.index(kind) for kind in kinds}), list[Point]()
    depth: Sequence[int] = range(len(kinds)) if prober.affords_all() else least
    while len(points) < 2 and len(depth) > (points[-1].layers if points else 0):
        try:
            point = prober.run(depth, points)
        except ProbeTimeout:
            if not points:
                raise
            break
        if point is None and len(depth) == len(least):
            break
        if point and not points:
            prober.widen(depth, point)
        points += [point] if point else []
        depth = prober.deeper(least, point) if point else least
    return points


class _Prober:
    """Runs probes of one config until the time for them is spent."""

    def __init__(
        self,
        shape: Shape,
        optim: OptimConfig,
        train: TrainConfig,
        memory: int,
        progress: Progress,
        probes: Probes,
        frozen: Frozen | None,
    ) -> None:
        self.frozen = frozen
        self.kinds = kinds_of(shape, frozen)
        self.shape, self.optim, self.train, self.memory, self.progress = shape, optim, train, memory, progress
        self.probes = probes
        self.began, self.overhead = time.monotonic(), _START_SECONDS
        self.full = self._size(range(len(layer_kinds(shape))))
        self.temporary = 0
        """Bytes that all rows of a micro-batch take more than the probe's, beside what layers keep."""
        self.micro_batches = min(2, train.batch_sequences // train.micro_batch_sequences)
        self.rows = train.micro_batch_sequences
        rate = peak_flops(pick_device(train.device), getattr(torch, train.dtype), threads(train))
        self.flops = _USUAL_MFU * rate
        least = self._size(sorted({self.kinds.index(kind) for kind in self.kinds}))
        while self.rows > 1 and _STEPS * self._step_seconds(least) > BUDGET_SECONDS / 2:
            self.rows //= 2

    @property
    def elapsed(self) -> float:
        """Seconds since the first probe was thought of."""
        return time.monotonic() - self.began

    def affords_all(self) -> bool:
        """Whether the whole model's first steps are likely to end in time and to fit."""
        return self._left() > _STEPS * self._step_seconds(self.full) and self.full.static < 0.5 * self.memory

    def _left(self) -> float:
        return BUDGET_SECONDS - self.elapsed - self.overhead

    def _size(self, kept: Sequence[int]) -> Size:
        frozen = None if self.frozen is None else self.frozen.within(kept)
        return measure_size(with_layers(self.shape, kept), self.optim, self.train.sequence_length, frozen)

    def active(self, kept: Sequence[int]) -> int:
        """How many of the layers keep something for the backward pass."""
        return sum(not self.kinds[layer].endswith(BELOW) for layer in kept)

    def _step_seconds(self, size: Size) -> float:
        return self.micro_batches * self.rows * self.train.sequence_length * size.flops_per_token / self.flops

    def run(self, kept: Sequence[int], before: Sequence[Point]) -> Point | None:
        """A probe with the layers `kept`. None when memory or time is too short for a step."""
        self.progress(0, None, f"plan: first steps with {len(kept)} of {len(layer_kinds(self.shape))} layers")
        size, began = self._size(kept), time.monotonic()
        last = bool(before) or len(kept) == len(layer_kinds(self.shape))
        steps, share = (_STEPS, 1.0) if last else (_SHALLOW_STEPS, _SHALLOW_SHARE)
        costs = self.probes.run(self._job(kept, size, self.rows, steps, share), BUDGET_SECONDS - self.elapsed)
        if costs is None:
            return None
        stepping = sum(sum(parts.values()) for parts in costs.seconds)
        self.overhead = max(0.0, time.monotonic() - began - stepping)
        if costs.compiled:
            self.began += sum(costs.seconds[0].values())
        return point_of(self.active(kept), len(kept), size, costs, before)

    def widen(self, kept: Sequence[int], point: Point) -> None:
        """Where `point` had fewer rows than a micro-batch: a step with all of them, for what else grows with rows."""
        if self.rows == self.train.micro_batch_sequences:
            return
        size, rows = self._size(kept), self.train.micro_batch_sequences
        try:
            costs = self.probes.run(self._job(kept, size, rows, steps=1, share=1.0), BUDGET_SECONDS - self.elapsed)
        except ProbeTimeout:
            return
        if costs is not None:
            more = point_of(self.active(kept), len(kept), size, costs, [point]).working - point.working
            self.temporary = max(0, round(more - point.activations * (rows / self.rows - 1)))

    def _job(self, kept: Sequence[int], size: Size, rows: int, steps: int, share: float) -> Job:
        """At most `steps` steps of micro-batches of `rows` sequences, in a share of the time left."""
        train, batch = self.train, self.micro_batches * rows
        work = train.steps * train.batch_sequences * self.full.flops_per_token
        planned = max(train.steps, _STEPS + 1, math.ceil(work / (batch * size.flops_per_token)))
        changes = {
            "steps": planned,
            "batch_sequences": batch,
            "micro_batch_sequences": rows,
            "checkpoint_every_steps": planned,
            "eval": EvalConfig(every_steps=planned, sets=()),
            "init_from": None if self.frozen is None else self.train.init_from,
            "only": None,
            "packing": "carry_over",
            "mix": None,
            "batch_ramp": None,
            "phases": (),
            "bad_batches": None,
            "track": (),
        }
        return Job(
            shape=dump_shape(with_layers(self.shape, kept)),
            optim=self.optim,
            train=train.model_copy(update=changes),
            vocabulary=size.vocabulary,
            steps=steps,
            seconds=self._left() * share,
            memory=self.memory,
            frozen=None if self.frozen is None else self.frozen.within(kept),
        )

    def deeper(self, least: list[int], point: Point) -> list[int]:
        """`least` and as many of the other layers, first ones first, as the time and memory left allow."""
        chosen = list(least)
        for layer in (i for i in spread(len(self.kinds), self.frozen) if i not in least):
            more = sorted([*chosen, layer])
            size = self._size(more)
            seconds = sum(point.seconds.values()) * size.flops_per_token / point.size.flops_per_token
            room = size.static + 2 * point.working * len(more) / len(least)
            if _DEEPER_STEPS * seconds > self._left() or room > self.memory:
                break
            chosen = more
        return chosen


def _extrapolate(points: list[Point], prober: _Prober) -> Trial:
    full, active = prober.full, prober.active(range(len(prober.kinds)))

    def along(x: Callable[[Point], float], y: Callable[[Point], float], at: float) -> float:
        first, last = points[0], points[-1]
        if x(first) == x(last):
            return y(last) * at / max(x(last), 1)
        slope = max(0.0, (y(last) - y(first)) / (x(last) - x(first)))
        return y(last) + slope * (at - x(last))

    train = prober.train
    rows = train.micro_batch_sequences / prober.rows
    work = rows * train.batch_sequences / train.micro_batch_sequences / prober.micro_batches
    parts = {
        part: along(lambda p: p.size.flops_per_token, lambda p, part=part: p.seconds[part], full.flops_per_token) * work
        for part in points[-1].seconds
        if part != "optimizer"
    }
    parts["optimizer"] = along(
        lambda p: p.size.layer_parameters, lambda p: p.seconds["optimizer"], full.layer_parameters
    )
    activations = along(lambda p: p.active, lambda p: p.activations, active)
    working = points[-1].working + activations - points[-1].activations
    if len(points) > 1:
        working = along(lambda p: p.active, lambda p: p.working, active)
    return Trial(
        parts=parts,
        activations=round(activations * rows),
        working=round(working + activations * (rows - 1) + prober.temporary),
        layers=points[-1].layers,
        seconds=prober.elapsed,
    )
