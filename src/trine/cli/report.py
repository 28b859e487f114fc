"""trine report: the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from trine.cli.result import Shown


def report(
    run: Annotated[Path, Parameter(help="A run folder, finished or not.")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="The file to write. Default: report.html in the run folder.")] = None,
) -> Shown:
    """Write one self-contained HTML file: losses, throughput, router health, bits per byte, samples, config.

    Example: trine report runs/quickstart --out report.html
    """
    from trine.report.page import write_report

    path = write_report(run, out)
    return Shown({"out": str(path)}, f"report   {path}")
