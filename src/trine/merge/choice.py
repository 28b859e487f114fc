"""Which merge of a sweep is taken: the best in one goal among those that lose little in the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trine.merge.sweep_config import Choice

Scores = Mapping[str, float | None]


def choose(
    rows: list[dict[str, Any]], baseline: Scores, goals: Mapping[str, str], choice: Choice
) -> tuple[int | None, str]:
    """The number of the chosen merge of a table's rows, and why; None where no merge has all scores.

    Where every merge loses more than a limit allows, the one whose largest loss over its limit is least is chosen.
    """
    scored = [row for row in rows if all(row["scores"].get(name) is not None for name in goals)]
    if not scored or any(baseline.get(name) is None for name in goals):
        return None, "no merge has all scores" if not scored else "the baseline lacks a score"

    def excess(row: dict[str, Any]) -> float:
        return max(
            change(row["scores"][name], baseline[name], goals[name]) - limit
            for name, limit in choice.loss_limits.items()
        )

    sign = -1 if goals[choice.best] == "max" else 1
    within = [row for row in scored if excess(row) <= 0]
    if within:
        row = min(within, key=lambda one: (sign * one["scores"][choice.best], one["merge"]))
        return row["merge"], f"best {choice.best} of {len(within)} merges within the limits"
    row = min(scored, key=lambda one: (excess(one), one["merge"]))
    return row["merge"], "no merge is within the limits; this one is the nearest"


def change(value: float | None, before: float | None, goal: str) -> float:
    """How much worse than before, as a share of before: negative where it is better."""
    assert value is not None
    assert before is not None
    worse = value - before if goal == "min" else before - value
    return worse / abs(before) if before else float(worse > 0)
