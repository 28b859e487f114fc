"""trine compare: evaluations side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from trine.cli.eval import check_out
from trine.cli.result import Shown
from trine.cli.words import command_line
from trine.errors import BadInput
from trine.manifest import publish


def compare(
    evaluations: Annotated[tuple[Path, ...], Parameter(help="Folders of `trine eval`; the first is compared with.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="The folder to make: compare.json and compare.html.")] = None,
    seed: Annotated[int, Parameter(help="Of the bootstrap's draws.")] = 0,
) -> Shown:
    """Compare models item by item: differences with 95 % intervals from 10,000 paired bootstrap draws.

    Example: trine compare scores/base scores/tuned scores/merged --out compared
    """
    if len(evaluations) < 2:
        raise BadInput("give at least two folders of `trine eval` to compare")
    if out is not None:
        check_out(out)
    from trine.evaluate.compare import compare_evaluations
    from trine.evaluate.pairing import read_evaluation

    record = compare_evaluations([read_evaluation(one) for one in evaluations], seed)
    text = table(record)
    if out is not None:
        from trine.report.evidence import write_comparison

        with publish(out, "comparison", {"command": command_line()}) as folder:
            (folder / "compare.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            write_comparison(record, out.name, folder / "compare.html")
        text.append(f"page     {out / 'compare.html'}")
    return Shown(({"out": str(out)} if out else {}) | record, "\n".join(text))


def table(record: dict[str, Any]) -> list[str]:
    """A line per task and model."""
    lines = []
    for task, one in record["tasks"].items():
        lines.append(f"{task}: {one['metric']}, {one['items']:,} items")
        for place, (model, value) in enumerate(zip(record["models"], one["values"], strict=True)):
            figure = "not finite" if value["value"] is None else f"{value['value']:.4f}"
            note = ""
            if place and one["against_first"][place - 1]["difference"] is not None:
                row = one["against_first"][place - 1]
                note = f"  {row['difference']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}), {row['verdict']}"
            lines.append(f"  {model['evaluation']}: {figure}{note}")
    return lines
