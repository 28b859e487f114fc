"""Metrics to what a page can draw: thinned curves that keep their extremes, a heatmap."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

MAX_POINTS = 2000
MAX_COLUMNS = 160

Point = tuple[int, float]


def curve(records: Sequence[dict[str, Any]], key: str) -> list[Point]:
    """(step, value) of every record that has a number at `key`."""
    found = ((record["step"], record.get(key)) for record in records)
    return [(step, value) for step, value in found if isinstance(value, int | float)]


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: first and last, and of each stretch between them the lowest and the highest."""
    if len(points) <= limit:
        return list(points)
    inner, stretches = points[1:-1], (limit - 2) // 2
    kept = [points[0]]
    for i in range(stretches):
        piece = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        low, high = min(piece, key=lambda p: p[1]), max(piece, key=lambda p: p[1])
        kept += sorted({low, high})
    return [*kept, points[-1]]


def smooth(points: Sequence[Point], share: float = 0.02) -> list[Point]:
    """Exponential mean over about `share` of the run, corrected for its start."""
    keep = 1 - 1 / max(1.0, len(points) * share)
    total, weight, out = 0.0, 0.0, []
    for step, value in points:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append((step, total / weight if weight else value))
    return out


def heatmap(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Router figures by layer and by stretch of steps: MaxVio, dead experts and bias spread as each stretch's
    largest, entropy as its smallest. None for a run without sparse layers."""
    routed = [record for record in records if record.get("router", {}).get("layer")]
    if not routed:
        return None
    layers = routed[-1]["router"]["layer"]
    columns = min(MAX_COLUMNS, len(routed))
    stretches = [routed[i * len(routed) // columns : (i + 1) * len(routed) // columns] for i in range(columns)]
    worst = {"max_vio": max, "dead": max, "bias_spread": max, "entropy": min}
    rows = {
        name: [
            [_short(choose(one["router"][name][row] or 0.0 for one in stretch)) for stretch in stretches]
            for row in range(len(layers))
        ]
        for name, choose in worst.items()
    }
    return {"layers": layers, "steps": [stretch[-1]["step"] for stretch in stretches], "rows": rows}


def typical(points: Sequence[Point]) -> float | None:
    """The median value of a curve; None for an empty one."""
    return median(value for _, value in points) if points else None


def series(name: str, points: Sequence[Point]) -> dict[str, Any]:
    """A thinned curve as the page's script draws it."""
    kept = thin(points)
    return {"name": name, "x": [step for step, _ in kept], "y": [_short(value) for _, value in kept]}


def _short(value: float) -> float:
    return float(f"{value:.5g}")
