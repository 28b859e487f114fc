"""A cell's finished runs to the figures that arms are compared by, and their paired differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trine.study.plan import ArmPlan, Program
from trine.study.spectrum.layout import Cell, Layout
from trine.study.statistics import Interval, paired_interval

STATE_BYTES = 16
"""Of a trained parameter: weight, gradient and AdamW's two moments, all fp32."""


@dataclass(frozen=True)
class Outcome:
    """One finished run."""

    bits: float
    """Bits per byte of the held-out text; of conversations, of their answers."""
    accuracy: float | None
    """Share of the held-out questions that it answers."""
    known: float
    """Bits per byte of text like that of the pretraining."""
    forgotten: float | None
    """The same, less what they were before; None where that is not known."""
    memory: int
    """Peak bytes."""
    seconds: float
    """Of all steps."""
    trained: int
    """Parameters."""


@dataclass(frozen=True)
class Figure:
    """What quality is told by."""

    name: str
    title: str
    higher: bool
    """Higher is better."""
    value: Callable[[Outcome], float | None]


FIGURES = (
    Figure("bits", "held-out bits/byte", False, lambda one: one.bits),
    Figure("accuracy", "right answers", True, lambda one: one.accuracy),
    Figure("forgotten", "forgotten bits/byte", False, lambda one: one.forgotten),
)


@dataclass(frozen=True)
class ArmOutcome:
    """What an arm came to in a cell."""

    name: str
    plan: ArmPlan
    runs: dict[int, Outcome] = field(default_factory=dict)
    """By seed, those that finished and did not diverge."""
    diverged: int = 0


def outcomes(layout: Layout, program: Program, cell: Cell, before: dict[str, Any]) -> dict[str, ArmOutcome]:
    """Every arm of a cell by name; `before` are the scores of the model as it was, by its weights."""
    return {arm.name: _arm(layout, program.arm(cell.name, arm.name), arm.name, before) for arm in layout.config.arms}


def _arm(layout: Layout, plan: ArmPlan, name: str, before: dict[str, Any]) -> ArmOutcome:
    runs, diverged = dict[int, Outcome](), 0
    for seed, spec in plan.seeds.items():
        kept = spec.keep()
        if kept is None:
            continue
        result, steps = kept["result"], spec.timeline.train.steps
        if result["diverged"]:
            diverged += 1
            continue
        asked = (result["choices"] or {}).get(layout.config.held_out)
        scores, other, began = result["scores"], layout.config.forgetting, before.get(result["start"])
        runs[seed] = Outcome(
            bits=scores[layout.config.held_out],
            accuracy=asked and asked["accuracy"],
            known=scores[other],
            forgotten=began and scores[other] - began["bits_per_byte"][other],
            memory=result["memory_bytes"],
            seconds=result["step_seconds"] * steps,
            trained=result["trained"],
        )
    return ArmOutcome(name, plan, runs, diverged)


def difference(figure: Figure, ours: ArmOutcome, theirs: ArmOutcome) -> Interval:
    """What `ours` has more than `theirs`, seed by seed."""
    pairs = [
        (figure.value(ours.runs[seed]), figure.value(theirs.runs[seed])) for seed in ours.runs if seed in theirs.runs
    ]
    return paired_interval([one - other for one, other in pairs if one is not None and other is not None])


def verdict(figure: Figure, interval: Interval) -> str:
    """better or worse, where the interval leaves no doubt; not told apart; open, without two pairs."""
    if interval.pairs < 2:
        return "open"
    if not interval.excludes(0):
        return "not told apart"
    return "better" if (interval.low > 0) is figure.higher else "worse"
