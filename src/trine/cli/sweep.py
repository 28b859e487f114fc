"""`trine merge --sweep`: what it prints and how each merge is made."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from trine.cli.live import watching
from trine.cli.merge import planned
from trine.cli.result import Shown
from trine.merge.align import align_experts
from trine.merge.engine import Options, merge
from trine.merge.sweep import ALIGNMENT, CHOSEN, TABLE, sweep
from trine.report.sweep import write_sweep


def run_sweep(sweep_file: Path, merge_file: Path, out: Path, options: Options, aligned: bool) -> Shown:
    """Run or take up a sweep in the folder `out` and print its Pareto table."""

    def make(recipe: Path, model: Path) -> None:
        plan = planned(recipe)
        if aligned:
            plan = align_experts(plan, kept=out / ALIGNMENT)
        words = ["trine", "merge", str(recipe), str(model), *(["--align-experts"] if aligned else [])]
        if options.mergekit:
            words += ["--numerics", "mergekit"]
        if options.seed:
            words += ["--seed", str(options.seed)]
        if options.allow_nonfinite:
            words += ["--allow-nonfinite"]
        if options.shard_bytes != Options.shard_bytes:
            words += ["--shard-bytes", str(options.shard_bytes)]
        merge(plan, model, replace(options, command=shlex.join(words)))

    settings = {
        "mergekit": options.mergekit,
        "seed": options.seed,
        "aligned": aligned,
        "allow_nonfinite": options.allow_nonfinite,
    }
    with watching() as watch:
        record = sweep(sweep_file, merge_file, out, settings, make, watch.progress)
    page = write_sweep(record, out.name, out / "sweep.html")
    return Shown({"out": str(out), **record}, _text(record, out, page))


def _text(record: dict[str, Any], out: Path, page: Path) -> str:
    front = [one for one in record["merges"] if one["pareto"]]
    lines = [f"sweep    {len(record['merges'])} merges; {len(front)} that no other beats, in {out / TABLE} and {page}"]
    for one in front:
        scores = "  ".join(f"{name} {value:.4g}" for name, value in one["scores"].items() if value is not None)
        values = "  ".join(f"{name}={value:.4g}" for name, value in one["values"].items())
        lines.append(f"pareto   {out / one['recipe']}: {scores}  ({values})")
    if "chosen" in record:
        chosen = record["chosen"]
        lines.append(f"chosen   merge {chosen['merge']}, kept as {out / CHOSEN}: {chosen['why']}")
    return "\n".join(lines)
