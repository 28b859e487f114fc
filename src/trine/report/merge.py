"""The page of a merge: what it did to the weights, by layer and by kind of tensor."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

from trine.manifest import write_file
from trine.report.page import render_page
from trine.report.plots import series

_PAIRS = 6
"""With more pairs of models than this, their mean, smallest and largest cosine are drawn instead of each."""
_MEANINGS = (
    "Size: the norm of a difference over the norm of the reference's weights.",
    "Cosine: of two differences as vectors. Near 1 they say the same, near 0 they touch different things, below 0 they "
    "undo each other.",
    "Sign conflicts: of the elements that two or more models change, the share that two of them move in opposite ways.",
    "Unchanged: elements of the result that equal the reference's.",
    "Trimmed: of a model's changed elements, the share that the method dropped for their size, rank or by chance; "
    "outvoted: the share that was dropped because the weighted sum has the other sign.",
)


def write_merge_report(figures: dict[str, Any], meta: dict[str, Any], out: Path) -> Path:
    """Write the page of `figures` (`trine.merge.figures`) and a merge's manifest `meta`, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, render_page(meta["name"], ("page.css",), ("charts.js", "merge.js"), merge_content(figures, meta)))
    return out


def merge_content(figures: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """What the page shows, as JSON."""
    labels = [*_labels(figures["models"]), "the merge"]
    return {
        "name": meta["name"],
        "method": figures["method"],
        "numerics": meta["numerics"],
        "reference": figures["reference"],
        "models": labels[:-1],
        "labels": labels,
        "trims": figures["trims"],
        "votes": figures["votes"],
        "tiles": _tiles(figures),
        "charts": [one for one in _charts(figures, labels) if one["series"]],
        "cosines": figures["total"]["cosines"],
        "layers": figures["layers"],
        "kinds": figures["kinds"],
        "meanings": _MEANINGS if figures["trims"] else _MEANINGS[:-1],
        "notes": meta["notes"],
        "recipe": meta["config"],
    }


def _labels(models: list[str]) -> list[str]:
    """The last part of each path, or the whole where two would be called the same."""
    last = [name.rstrip("/").rpartition("/")[2] for name in models]
    return last if len(set(last)) == len(last) else models


def _tiles(figures: dict[str, Any]) -> list[dict[str, str]]:
    total = figures["total"]
    size = total["norms"][-1] / total["reference_norm"] if total["reference_norm"] else 0.0
    cosines = [row[j] for i, row in enumerate(total["cosines"][:-1]) for j in range(i) if row[j] is not None]
    layers = sum(isinstance(one["layer"], int) for one in figures["layers"])
    tiles = [
        _tile("elements", f"{total['elements']:,}", f"in {layers} layers; {len(figures['kinds'])} kinds of tensor"),
        _tile("size of the merge", f"{size:.2%}", "its difference's norm over the reference's"),
        _tile("unchanged", f"{total['unchanged']:.1%}", "elements of the result that equal the reference's"),
    ]
    if cosines:
        note = f"from {min(cosines):.3f} to {max(cosines):.3f}, between the models' differences"
        tiles.append(_tile("mean cosine", f"{sum(cosines) / len(cosines):.3f}", note))
    if total["sign_conflicts"] is not None:
        tiles.append(
            _tile("sign conflicts", f"{total['sign_conflicts']:.1%}", "where two models pull in opposite ways")
        )
    if figures["trims"]:
        trimmed = total["trimmed"]
        note = f"from {min(trimmed):.1%} to {max(trimmed):.1%} of each model's changed elements"
        tiles.append(_tile("trimmed", f"{sum(trimmed) / len(trimmed):.1%}", note))
    return tiles


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _charts(figures: dict[str, Any], labels: list[str]) -> list[dict[str, Any]]:
    rows = [one for one in figures["layers"] if isinstance(one["layer"], int)]
    models = range(len(labels) - 1)

    def line(name: str, value: Callable[[dict[str, Any]], float | None]) -> dict[str, Any] | None:
        points = [(one["layer"], found) for one in rows if (found := value(one)) is not None]
        return series(name, points) if points else None

    def chart(title: str, unit: str, lines: list[dict[str, Any] | None], **more: bool) -> dict[str, Any]:
        kept = [one for one in lines if one]
        return {"title": title, "unit": unit, "axis": "layer", "dots": len(rows) < 40, "series": kept, **more}

    sizes = [line(label, lambda one, i=i: _size(one, i)) for i, label in enumerate(labels)]
    with_merge = [line(labels[i], lambda one, i=i: one["cosines"][i][-1]) for i in models]
    charts = [
        chart("Size of the differences", "per cent of the reference's norm", sizes, zero=True),
        chart("Cosine between the models' differences", "", _cosines(labels, line)),
        chart("Cosine with the merged difference", "", with_merge),
        chart("Sign conflicts", "per cent of the elements that several models change",
              [line("conflicts", lambda one: _percent(one["sign_conflicts"]))], zero=True),
    ]  # fmt: skip
    for key in [*(["trimmed"] if figures["trims"] else []), *(["outvoted"] if figures["votes"] else [])]:
        lines = [line(labels[i], lambda one, i=i, key=key: _percent(one[key][i])) for i in models]
        charts.append(chart(key.capitalize(), "per cent of the model's changed elements", lines, zero=True))
    unchanged = [line("unchanged", lambda one: _percent(one["unchanged"]))]
    return [*charts, chart("Unchanged", "per cent of the result's elements", unchanged, zero=True)]


def _cosines(labels: list[str], line: Callable[..., Any]) -> list[dict[str, Any] | None]:
    pairs = list(combinations(range(len(labels) - 1), 2))
    if len(pairs) <= _PAIRS:
        return [line(f"{labels[i]} and {labels[j]}", lambda one, i=i, j=j: one["cosines"][i][j]) for i, j in pairs]

    def of(one: dict[str, Any], choose: Callable[[list[float]], float]) -> float | None:
        found = [one["cosines"][i][j] for i, j in pairs if one["cosines"][i][j] is not None]
        return choose(found) if found else None

    named = {"mean": lambda all: sum(all) / len(all), "smallest": min, "largest": max}
    return [line(name, lambda one, choose=choose: of(one, choose)) for name, choose in named.items()]


def _size(one: dict[str, Any], place: int) -> float | None:
    return _percent(one["norms"][place] / one["reference_norm"]) if one["reference_norm"] else None


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
