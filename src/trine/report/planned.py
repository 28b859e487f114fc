"""What was planned for a run beside what was measured."""

from __future__ import annotations

from typing import Any

from trine.report.load import RunFiles
from trine.report.plots import curve, typical


def planned(files: RunFiles) -> list[list[str]]:
    """Rows of what, planned, measured and difference; a figure that only one side has is left out."""
    plan, metrics = files.plan, files.metrics
    if not plan or not metrics:
        return []
    memory, disk, time = (plan.get(name) or {} for name in ("memory", "disk", "time"))
    peak = max((value for _, value in curve(metrics, "memory_bytes")), default=None)
    whole = memory.get("peak") is not None
    timed = [one["time"] | {"step": one["step"]} for one in metrics if one.get("time")]
    rows = [
        _row("memory" if whole else "memory, at least", _own(memory), peak, _gib, exact=whole),
        _row("step time, median", time.get("step_seconds"), typical(curve(metrics, "seconds")), _seconds),
        *(
            _row(f"of it {part}", seconds, typical(curve(timed, part)), _seconds)
            for part, seconds in (time.get("parts") or {}).items()
        ),
        _row("checkpoint on disk", disk.get("checkpoint"), files.disk.get("checkpoint"), _gib),
        _row("exported model on disk", disk.get("export"), files.disk.get("model"), _gib),
        _row("tokens", (plan.get("work") or {}).get("tokens"), metrics[-1].get("tokens"), _count),
    ]
    return [row for row in rows if row]


def _own(memory: dict[str, Any]) -> int | None:
    """Planned memory as a run measures it: without weights in the pages of their file."""
    needed = memory.get("needed")
    return None if needed is None else needed - memory.get("mapped", 0)


def _row(what: str, plan: Any, measured: Any, shown: Any, exact: bool = True) -> list[str]:
    if not all(isinstance(value, int | float) for value in (plan, measured)):
        return []
    difference = f"{plan / measured - 1:+.1%}" if exact and measured else "–"
    return [what, shown(plan), shown(measured), difference]


def _gib(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def _count(value: float) -> str:
    return f"{value:,.0f}"
