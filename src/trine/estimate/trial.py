"""From probes of a model with few layers to what all of its layers take.

The cost of a step is a constant and a share for each layer, so that two depths tell it for every depth: seconds of
forward and backward grow with the model's FLOPs, those of the optimizer with the layers' parameters, memory beyond
weights, gradients and optimizer state with the number of layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from trine.estimate.probe import STEPS, Job, StepCost, run_probe
from trine.estimate.shape import Shape, dump_shape, layer_kinds, with_layers
from trine.estimate.size import Size, measure_size
from trine.optim.config import OptimConfig
from trine.progress import Progress
from trine.train.config import TrainConfig
from trine.train.meters import peak_flops
from trine.train.setup import pick_device, threads

BUDGET_SECONDS = 20.0
"""All probes of a plan together."""
_USUAL_MFU = 0.1
"""Guess of a small model's, to choose the first probe's size."""


@dataclass(frozen=True)
class Trial:
    """What a full step is expected to cost."""

    step_seconds: float
    parts: dict[str, float]
    """forward, backward, optimizer."""
    activations: int
    """What a micro-batch's forward pass keeps for the backward pass, bytes."""
    working: int
    """Most bytes beyond weights, gradients and optimizer state at any time: activations, the loss, temporary
    results, what the allocator and the matrix library keep."""
    layers: int
    """Most layers that a probe had."""
    seconds: float
    """Time the probes took."""


@dataclass(frozen=True)
class _Point:
    """A probe: its model and its typical step."""

    layers: int
    size: Size
    seconds: dict[str, float]
    working: int
    activations: int
    steps: int


def run_trial(shape: Shape, optim: OptimConfig, train: TrainConfig, memory: int, progress: Progress) -> Trial | None:
    """Probe at one or two depths within twenty seconds; None when `memory` bytes do not even hold the smallest."""
    began, kinds = time.monotonic(), layer_kinds(shape)
    full = measure_size(shape, optim, train.sequence_length)
    probe = _Prober(shape, optim, train, memory, progress, began)
    kept = sorted({kinds.index(kind) for kind in kinds})
    points = [probe.run(kept, 0.45)]
    deeper = probe.deeper(kept, points[0]) if points[0] else kept
    if len(deeper) > len(kept):
        points.append(probe.run(deeper, 1.0))
    found = [point for point in points if point is not None]
    if not found:
        return None
    return _extrapolate(found, full, len(kinds), probe, time.monotonic() - began)


class _Prober:
    """Runs probes of one config until the time for them is spent."""

    def __init__(
        self, shape: Shape, optim: OptimConfig, train: TrainConfig, memory: int, progress: Progress, began: float
    ) -> None:
        self.shape, self.optim, self.train, self.memory = shape, optim, train, memory
        self.progress, self.began = progress, began
        self.overhead = 0.0
        self.micro_batches = min(2, train.batch_sequences // train.micro_batch_sequences)
        self.rows = train.micro_batch_sequences
        kinds = layer_kinds(shape)
        least = measure_size(with_layers(shape, sorted({kinds.index(kind) for kind in kinds})), optim, self._length)
        rate = _USUAL_MFU * peak_flops(pick_device(train.device), getattr(torch, train.dtype), threads(train))
        per_row = STEPS * self.micro_batches * self._length * least.flops_per_token / rate
        while self.rows > 1 and self.rows * per_row > BUDGET_SECONDS / 2:
            self.rows //= 2

    @property
    def _length(self) -> int:
        return self.train.sequence_length

    def _left(self) -> float:
        return BUDGET_SECONDS - (time.monotonic() - self.began)

    def run(self, kept: Sequence[int], share: float) -> _Point | None:
        """A probe with the layers `kept`, which may take `share` of the time that is left."""
        self.progress(0, None, f"plan: a few steps with {len(kept)} layers")
        cut, began, left = with_layers(self.shape, kept), time.monotonic(), self._left()
        job = Job(
            shape=dump_shape(cut),
            optim=self.optim,
            train=self.train,
            micro_batches=self.micro_batches,
            rows=self.rows,
            seconds=max(1.0, left * share - self.overhead),
            memory=self.memory,
        )
        costs = run_probe(job, left)
        if not costs:
            return None
        self.overhead = max(0.0, time.monotonic() - began - sum(sum(one.seconds.values()) for one in costs))
        return _point(len(kept), measure_size(cut, self.optim, self._length), costs)

    def deeper(self, kept: list[int], point: _Point) -> list[int]:
        """`kept` and as many of the other layers, first ones first, as the time and memory left allow."""
        layers = list(range(len(layer_kinds(self.shape))))
        chosen = list(kept)
        for layer in (i for i in layers if i not in kept):
            trial = sorted([*chosen, layer])
            size = measure_size(with_layers(self.shape, trial), self.optim, self._length)
            seconds = sum(point.seconds.values()) * size.flops_per_token / point.size.flops_per_token
            bytes_needed = size.static + point.working * len(trial) / len(kept)
            if self.overhead + (STEPS + 0.5) * seconds > self._left() or bytes_needed > self.memory:
                break
            chosen = trial
        return chosen


def _point(layers: int, size: Size, costs: list[StepCost]) -> _Point:
    timed = costs[1:] or costs
    return _Point(
        layers=layers,
        size=size,
        seconds={part: median(one.seconds[part] for one in timed) for part in costs[0].seconds},
        working=max(0, max(one.peak for one in costs) - size.static),
        activations=max(one.activations for one in costs),
        steps=len(costs),
    )


def _extrapolate(points: list[_Point], full: Size, layers: int, probe: _Prober, seconds: float) -> Trial:
    def along(x: Callable[[_Point], float], y: Callable[[_Point], float], at: float) -> float:
        first, last = points[0], points[-1]
        if x(first) == x(last):
            return y(last) * at / x(last)
        slope = max(0.0, (y(last) - y(first)) / (x(last) - x(first)))
        return y(last) + slope * (at - x(last))

    train = probe.train
    rows = train.micro_batch_sequences / probe.rows
    work = rows * train.batch_sequences / train.micro_batch_sequences / probe.micro_batches
    parts = {
        part: along(lambda p: p.size.flops_per_token, lambda p, part=part: p.seconds[part], full.flops_per_token) * work
        for part in ("forward", "backward")
    }
    parts["optimizer"] = along(
        lambda p: p.size.layer_parameters, lambda p: p.seconds["optimizer"], full.layer_parameters
    )
    activations = along(lambda p: p.layers, lambda p: p.activations, layers)
    working = along(lambda p: p.layers, lambda p: p.working, layers)
    return Trial(
        step_seconds=sum(parts.values()),
        parts=parts,
        activations=round(activations * rows),
        working=round(working + activations * (rows - 1)),
        layers=points[-1].layers,
        seconds=seconds,
    )
