"""The page of a sweep: the Pareto front, each score over the merges, the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trine.manifest import write_file
from trine.report.page import render_page


def write_sweep(record: dict[str, Any], name: str, out: Path) -> Path:
    """Write the page of a sweep's table (`trine.merge.sweep.table`) to `out`, whole or not at all; returns `out`."""
    write_file(out, render_page(name, ("page.css",), ("charts.js", "sweep.js"), {"name": name, **record}))
    return out
