"""The end of every benchmark: its rows into a file, and whether they reach their goals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def finish(rows: Sequence[dict[str, Any]], path: Path | None) -> int:
    """Write `{"rows": rows}` to `path` when there is one; the exit code: 1 when a ratio is below its goal, else 0."""
    if path:
        path.write_text(json.dumps({"rows": list(rows)}, indent=1) + "\n")
    return int(any(row["ratio"] < row["goal"] for row in rows))
