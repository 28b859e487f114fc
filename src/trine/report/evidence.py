"""The pages of a gate and of a comparison: intervals drawn, figures in tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trine.manifest import write_file
from trine.report.page import render_page


def write_gate(record: dict[str, Any], name: str, out: Path) -> Path:
    """Write the page of gate.json to `out`; returns `out`."""
    sides = {side: record[side] for side in ("general", "domain")}
    tiles = [_tile("gate", "passed" if record["passed"] else "failed", "the worse ends of both intervals decide")]
    for side, one in sides.items():
        limit = -one["limit"] if side == "general" else one["limit"]
        note = f"95 % from {_percent(one['low'])} to {_percent(one['high'])}; must be at least {_percent(limit)}"
        tiles.append(_tile(f"{side}: {'passed' if one['passed'] else 'failed'}", _percent(one["change"]), note))
    tiles.append(_tile("items", f"{record['items']:,}", f"drawn {record['draws']:,} times, seed {record['seed']}"))
    forests = [
        {
            "title": f"{side.capitalize()}: change by set",
            "unit": "percent of the base's value; positive is better; the dashed line is the limit",
            "limit": 100 * (-one["limit"] if side == "general" else one["limit"]),
            "rows": [
                {"name": "mean of the sets", **_ends(one), "strong": True},
                *({"name": task, **_ends(row)} for task, row in one["sets"].items()),
            ],
        }
        for side, one in sides.items()
    ]
    heads = ["side", "set", "metric", "base", "new", "change", "95 % interval", "items"]
    rows = [
        [side, task, row["metric"], _figure(row["base"]), _figure(row["new"]), _percent(row["change"]), _span(row),
         f"{row['items']:,}"]
        for side, one in sides.items()
        for task, row in one["sets"].items()
    ]  # fmt: skip
    models = [["base", *_model(record["base"])], ["new", *_model(record["new"])]]
    tables = [
        {"title": "Sets", "heads": heads, "rows": rows},
        {"title": "Models", "heads": ["", "folder", "fingerprint", "type", "tokens read at once"], "rows": models},
    ]
    return _write(
        name, "Does the new model keep what the base knew, and know more of its domain?", tiles, forests, tables, out
    )


def write_comparison(record: dict[str, Any], name: str, out: Path) -> Path:
    """Write the page of compare.json to `out`; returns `out`."""
    names = [_short(one["evaluation"]) for one in record["models"]]
    tasks = record["tasks"]
    verdicts = [row["verdict"] for one in tasks.values() for row in one["against_first"]]
    tiles = [_tile("tasks in all", f"{len(tasks):,}", ", ".join(record["not_in_all"][:5]) or "none is left out")]
    tiles += [
        _tile(word, f"{verdicts.count(word)}", f"than {names[0]}, of {len(verdicts)}") for word in ("better", "worse")
    ]
    tiles.append(_tile("intervals", "95 %", f"paired, {record['draws']:,} draws, seed {record['seed']}"))
    forests = []
    for task, one in tasks.items():
        better = "more" if one["higher_is_better"] else "less"
        rows = [
            {"name": names[place], **{key: row[key] for key in ("value", "low", "high")}}
            for place, row in enumerate(one["values"])
        ]
        forests.append(
            {"title": task, "unit": f"{one['metric']}; {better} is better; {one['items']:,} items", "rows": rows}
        )
    heads = ["task", "model", "value", "difference", "95 % interval", "change", "items better, worse", "verdict"]
    lines = []
    for task, one in tasks.items():
        lines.append([task, names[0], _figure(one["values"][0]["value"]), "", "", "", "", ""])
        for place, row in enumerate(one["against_first"], start=1):
            value, span = _figure(one["values"][place]["value"]), f"{_figure(row['low'])} to {_figure(row['high'])}"
            counts = f"{row['items_better']:,}, {row['items_worse']:,}"
            difference, change = _figure(row["difference"]), _percent(row["change"])
            lines.append([task, names[place], value, difference, span, change, counts, row["verdict"]])
    groups = [
        [task, group, *(_figure(value) for value in part["values"]), f"{part['items']:,}"]
        for task, one in tasks.items()
        for group, part in one["groups"].items()
    ]
    models = [[short, *_model(one)] for short, one in zip(names, record["models"], strict=True)]
    tables = [
        {"title": f"Against {names[0]}", "heads": heads, "rows": lines},
        {"title": "By group", "heads": ["task", "group", *names, "items"], "rows": groups},
        {"title": "Models", "heads": ["", "folder", "fingerprint", "type", "tokens read at once"], "rows": models},
    ]
    return _write(name, "The same items asked of every model.", tiles, forests, tables, out)


def _write(name: str, about: str, tiles: Any, forests: Any, tables: Any, out: Path) -> Path:
    kept = [one for one in tables if one["rows"]]
    data = {"name": name, "about": about, "tiles": tiles, "forests": forests, "tables": kept}
    write_file(out, render_page(name, ("page.css",), ("charts.js", "evidence.js"), data))
    return out


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _ends(row: dict[str, Any]) -> dict[str, float | None]:
    """Change and interval in percent."""
    given = {"value": row["change"], "low": row["low"], "high": row["high"]}
    return {key: None if value is None else 100 * value for key, value in given.items()}


def _span(row: dict[str, Any]) -> str:
    return f"{_percent(row['low'])} to {_percent(row['high'])}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.2f} %"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.5g}"


def _model(one: dict[str, Any]) -> list[str]:
    return [one["folder"], one["fingerprint"][:16], one["dtype"], f"{one['longest']:,}"]


def _short(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
