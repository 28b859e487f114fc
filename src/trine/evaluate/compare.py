"""Models side by side on the same items, with intervals of each and of what sets it apart from the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trine.errors import BadInput
from trine.evaluate.bootstrap import DRAWS, drawn_means, gains, interval
from trine.evaluate.items import finite
from trine.evaluate.pairing import Evaluation, Paired, pair


def compare_evaluations(evaluations: Sequence[Evaluation], seed: int) -> dict[str, Any]:
    """The record of compare.json: every task that all have. Raises BadInput when they have none in common."""
    names = [str(one.folder) for one in evaluations]
    shared = [task for task in evaluations[0].tasks if all(task in one.tasks for one in evaluations)]
    if not shared:
        raise BadInput(f"{', '.join(names)}: have no task in common")
    every = dict.fromkeys(task for one in evaluations for task in one.tasks)
    paired = [pair([one.tasks[task] for one in evaluations], names) for task in shared]
    return {
        "models": [{"evaluation": name, **one.model} for name, one in zip(names, evaluations, strict=True)],
        "tasks": {one.name: _compared(one, seed) for one in paired},
        "not_in_all": [task for task in every if task not in shared],
        "interval": 0.95,
        "draws": DRAWS,
        "seed": seed,
    }


def _compared(one: Paired, seed: int) -> dict[str, Any]:
    record: dict[str, Any] = {
        "metric": one.metric,
        "higher_is_better": one.higher_is_better,
        "items": len(one.ids),
        "unpaired": one.unpaired,
        "not_finite": int((~np.isfinite(one.scores)).any(0).sum()),
    }
    values = one.values()
    means = drawn_means(list(one.scores), one.weights, seed, one.name)
    ends = [interval(row) for row in means]
    record["values"] = [
        {"value": finite(value), "low": finite(low), "high": finite(high)}
        for value, (low, high) in zip(values, ends, strict=True)
    ]
    record["against_first"] = [_against(one, values, means, place) for place in range(1, len(values))]
    record["groups"] = {
        name: _group_values(one, name) for name in (dict.fromkeys(one.groups) if len(set(one.groups)) > 1 else ())
    }
    return record


def _against(one: Paired, values: Sequence[float], means: np.ndarray, place: int) -> dict[str, Any]:
    """`difference` in the metric's unit, `change` relative to the first and positive where this one is better."""
    low, high = interval(means[place] - means[0])
    change = float(gains(np.array(values[0]), np.array(values[place]), one.higher_is_better))
    ends = interval(gains(means[0], means[place], one.higher_is_better))
    better = one.scores[place] - one.scores[0] if one.higher_is_better else one.scores[0] - one.scores[place]
    worse_end, better_end = (low, high) if one.higher_is_better else (-high, -low)
    verdict = "better" if worse_end > 0 else "worse" if better_end < 0 else "no clear difference"
    return {
        "difference": finite(values[place] - values[0]),
        "low": finite(low),
        "high": finite(high),
        "change": finite(change),
        "change_low": finite(ends[0]),
        "change_high": finite(ends[1]),
        "items_better": int((better > 0).sum()),
        "items_worse": int((better < 0).sum()),
        "verdict": verdict if np.isfinite(low) and np.isfinite(high) else "not finite",
    }


def _group_values(one: Paired, name: str) -> dict[str, Any]:
    kept = [place for place, group in enumerate(one.groups) if group == name]
    weights = one.weights[kept]
    values = (one.scores[:, kept] * weights).sum(1) / weights.sum()
    return {"items": len(kept), "values": [finite(float(value)) for value in values]}
