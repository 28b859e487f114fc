"""What a probe tells: its model, its typical step, its memory; and which layers cost alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trine.estimate.frozen import Frozen
from trine.estimate.probing import Costs
from trine.estimate.shape import layer_kinds
from trine.estimate.size import Size, measure_size
from trine.model.shape import Shape
from trine.optim.config import OptimConfig

BELOW = " below"
"""End of the kind of layers under the lowest trained one, which keep nothing."""
_SPREAD = (5**0.5 - 1) / 2
"""Multiples of the golden ratio fall evenly."""


def kinds_of(shape: Shape, frozen: Frozen | None) -> list[str]:
    """Kinds of layers; where a part is trained, layers below it, with none of it and with some of it differ."""
    kinds = layer_kinds(shape)
    if frozen is None:
        return kinds
    trained, below = frozen.layers(), measure_size(shape, OptimConfig(), 1, frozen).frozen_layers
    ends = [BELOW if i < below else "" if i in trained else " frozen" for i in range(len(kinds))]
    return [kind + end for kind, end in zip(kinds, ends, strict=True)]


def spread(layers: int, frozen: Frozen | None) -> Sequence[int]:
    """Layers in the order in which a deeper probe takes them: from the first, or spread where they differ."""
    return range(layers) if frozen is None else sorted(range(layers), key=lambda i: i * _SPREAD % 1)


@dataclass(frozen=True)
class Point:
    """A probe: its model and its typical step."""

    active: int
    """Layers that keep something for the backward pass."""
    layers: int
    size: Size
    seconds: dict[str, float]
    working: int
    activations: int
    first: dict[str, float]
    """Seconds of its first step."""


def point_of(active: int, layers: int, size: Size, costs: Costs, before: Sequence[Point]) -> Point:
    """What a probe tells of a typical step: its fastest, because steps get faster until freed memory is used again.

    One that had time for its first step alone is held to be slower in it, and to lack the optimizer's state before its
    end, as the probe `before` was.
    """
    first, timed = costs.seconds[0], costs.seconds[1:]
    seconds = min(timed or [first], key=lambda parts: sum(parts.values()))
    working = costs.peak - size.own
    if not timed:
        working += size.optimizer
        if before:
            seconds = {
                part: s * before[0].seconds[part] / max(before[0].first[part], 1e-6) for part, s in first.items()
            }
    working = max(0, working)
    return Point(
        active=active,
        layers=layers,
        size=size,
        seconds=seconds,
        working=working,
        activations=min(working, working if costs.activations is None else costs.activations),
        first=first,
    )
