"""The page of a batch: the same policy as the report, its own style and script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trine.manifest import write_file
from trine.report.page import render_page


def write_batch(view: dict[str, Any], out: Path) -> Path:
    """Write the page of `view` (`trine.batch_view`) to `out`, whole or not at all; returns `out`."""
    page = render_page(f"step {view['step']}, {view['name']}", ("page.css", "batch.css"), ("batch.js",), view)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, page)
    return out
