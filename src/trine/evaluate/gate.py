"""The forgetting gate: does a new model keep what the base knew in general, and know more of its domain?

A set's change is relative to the base's value and positive where the new model is better, whatever the metric's
direction. A side's change is the mean over its sets. Both sides' intervals come from a paired bootstrap over items; the
worse end decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trine.errors import BadInput, TrineError
from trine.evaluate.bootstrap import DRAWS, drawn_means, gains, interval
from trine.evaluate.items import finite
from trine.evaluate.pairing import Paired, require_finite

LEAST_ITEMS = 2
"""An interval needs items to draw from."""


@dataclass(frozen=True)
class Limits:
    """What is allowed and asked for, as shares of the base's value."""

    general_loss: float
    domain_gain: float


def judge(general: Sequence[Paired], domain: Sequence[Paired], limits: Limits, seed: int) -> dict[str, Any]:
    """The record of gate.json, less what it says of the models; scores are the base's and the new model's.

    Raises TrineError where a set has no finite relative change, BadInput where it has too few items.
    """
    sides = {"general": _side(general, seed), "domain": _side(domain, seed)}
    floors = {"general": -limits.general_loss, "domain": limits.domain_gain}
    given = {"general": limits.general_loss, "domain": limits.domain_gain}
    record: dict[str, Any] = {}
    for name, side in sides.items():
        record[name] = side | {"limit": given[name], "passed": side["low"] >= floors[name]}
    return {
        "passed": all(record[name]["passed"] for name in sides),
        "reading": "change, low and high are relative to the base and positive where the new model is better; general "
        "passes when low is at least -limit, domain when low is at least limit",
        **record,
        "items": sum(len(one.ids) for one in [*general, *domain]),
        "interval": 0.95,
        "draws": DRAWS,
        "seed": seed,
    }


def _side(sets: Sequence[Paired], seed: int) -> dict[str, Any]:
    changes, drawn, rows = [], [], {}
    for one in sets:
        if len(one.ids) < LEAST_ITEMS:
            raise BadInput(f"set '{one.name}': {len(one.ids)} item; an interval needs at least {LEAST_ITEMS}")
        require_finite(one, ("the base", "the new model"))
        base, new = one.values()
        if base == 0:
            raise TrineError(f"set '{one.name}': the base's {one.metric} is 0, so no change is relative to it")
        means = drawn_means(list(one.scores), one.weights, seed, one.name)
        fresh = gains(means[0], means[1], one.higher_is_better)
        change = float(gains(np.array(base), np.array(new), one.higher_is_better))
        low, high = interval(fresh)
        rows[one.name] = {
            "metric": one.metric,
            "higher_is_better": one.higher_is_better,
            "base": base,
            "new": new,
            "change": change,
            "low": finite(low),
            "high": finite(high),
            "items": len(one.ids),
        }
        changes.append(change)
        drawn.append(fresh)
    with np.errstate(invalid="ignore"):
        low, high = interval(np.mean(drawn, axis=0))
    if not np.isfinite(low):
        raise TrineError(
            f"sets {', '.join(rows)}: the lower end of the change is not finite: the base scores 0 too often"
        )
    return {"change": float(np.mean(changes)), "low": low, "high": finite(high), "sets": rows}


def item_rows(side: str, sets: Sequence[Paired]) -> list[dict[str, Any]]:
    """A line for every paired item."""
    return [
        {"side": side, "set": one.name, "id": name, "group": group, "base": base, "new": new, "weight": weight}
        for one in sets
        for name, group, base, new, weight in zip(
            one.ids, one.groups, one.scores[0].tolist(), one.scores[1].tolist(), one.weights.tolist(), strict=True
        )
    ]


def read_share(text: str, option: str) -> float:
    """`1%` or `0.01` as a share. Raises BadInput."""
    bare = text.strip().removesuffix("%").strip()
    try:
        value = float(bare)
    except ValueError:
        value = float("nan")
    share = value / 100 if text.strip().endswith("%") else value
    if not 0 <= share < float("inf"):
        raise BadInput(f"{option} is {text}; expected a share of at least 0, such as 1% or 0.01")
    if share >= 1 and not text.strip().endswith("%"):
        raise BadInput(f"{option} is {text}; write {text}% for percent, or a share below 1")
    return share
