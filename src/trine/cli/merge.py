"""trine merge: checkpoints to one checkpoint, by a recipe in mergekit's YAML."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from trine.cli.live import clock, watching
from trine.cli.result import Shown
from trine.cli.words import DryRun, command_line
from trine.errors import BadInput

if TYPE_CHECKING:
    from trine.merge.engine import Options


def merge(
    config: Annotated[Path, Parameter(help="A merge config, in mergekit's YAML.")],
    out: Annotated[Path, Parameter(help="The model folder to make; it must not exist yet.")],
    /,
    *,
    numerics: Annotated[
        Literal["accurate", "mergekit"],
        Parameter(help="fp32 and one rounding at the end; or mergekit's own order of rounding and formulas."),
    ] = "accurate",
    seed: Annotated[int, Parameter(help="Of the random masks of dare and della.")] = 0,
    checksums: Annotated[Path | None, Parameter(help="SHA-256 of inputs, as sha256sum writes them.")] = None,
    align_experts: Annotated[
        bool, Parameter(help="Put every model's experts in the order of the base's (or first model's) before merging.")
    ] = False,
    experts: Annotated[
        Literal["single", "stacked"],
        Parameter(help="Merge each expert by itself; or all of a layer as one tensor, as mergekit does, written so."),
    ] = "single",
    allow_nonfinite: Annotated[bool, Parameter(help="Merge NaN and infinity too.")] = False,
    shard_bytes: Annotated[int, Parameter(help="Largest file of the output.")] = 5_000_000_000,
    threads: Annotated[int, Parameter(help="Workers. 0: as many as cores.")] = 0,
    report: Annotated[
        Path | None, Parameter(help="Write a page of what the merge did: sizes, cosines, sign conflicts, trimming.")
    ] = None,
    sweep: Annotated[
        Path | None,
        Parameter(help="A sweep config: many merges with some numbers varied, each scored by a command, into OUT."),
    ] = None,
    parts: Annotated[
        Path | None,
        Parameter(
            help="Where a config of several documents puts the named ones. Default: OUT.parts, or OUT if all are."
        ),
    ] = None,
    dry_run: DryRun = False,
) -> Shown:
    """Merge models: everything is checked from headers first, then tensors stream through memory of fixed size.

    A merge that was killed goes on when the same command is given again; OUT appears when it is complete.

    Example: trine merge merge.yaml merged --dry-run

    Example: trine merge merge.yaml swept --sweep sweep.yaml
    """
    from trine.merge.documents import is_several
    from trine.merge.engine import Options
    from trine.merge.hashing import read_checksums

    command = command_line()
    known = read_checksums(checksums) if checksums else ()
    options = Options(numerics == "mergekit", seed, allow_nonfinite, shard_bytes, threads, known, command)
    stacked = experts == "stacked"
    if stacked and (report or sweep):
        raise BadInput("--experts stacked: --report and --sweep are for experts by themselves")
    if is_several(config):
        from trine.cli.documents import merge_documents

        if report or sweep:
            raise BadInput(f"{config}: holds several documents; --report and --sweep are for one")
        settings = {"numerics": numerics, "seed": seed, "aligned": align_experts, "stacked": stacked}

        def each(recipe: Path, folder: Path) -> Shown:
            return _merge(recipe, folder, options, align_experts, stacked, None, dry_run)

        return merge_documents(config, out, parts, settings, dry_run, each)
    if sweep and not dry_run:
        from trine.cli.sweep import run_sweep

        if report:
            raise BadInput("--report: shows one merge, --sweep makes many; run trine report on one that is kept")
        return run_sweep(sweep, config, out, options, align_experts)
    if parts:
        raise BadInput(f"--parts: {config} holds one document without a name, whose result is OUT")
    return _merge(config, out, options, align_experts, stacked, report, dry_run)


def _merge(
    config: Path,
    out: Path,
    options: Options,
    align_experts: bool,
    stacked: bool,
    report: Path | None,
    dry_run: bool,
) -> Shown:
    """Merge by one recipe, or say what that would do."""
    from trine.merge.align import align_experts as aligned
    from trine.merge.align import expert_layers
    from trine.merge.engine import merge as run
    from trine.merge.engine import partial_folder
    from trine.merge.stack import stack_experts

    plan = planned(config)
    if align_experts:
        expert_layers(plan.jobs)
    if dry_run:
        return _dry_run(stack_experts(plan) if stacked else plan, out, options)
    if partial_folder(out).is_dir():
        print(f"merge     going on with {partial_folder(out)}", file=sys.stderr)
    with watching() as watch:
        if align_experts:
            plan = aligned(plan, watch.progress)
        if stacked:
            plan = stack_experts(plan)
        record = run(plan, out, options, watch.progress)
        if report:
            write_report(plan, out, options, report, watch.progress)
    files = {name: entry for name, entry in record["files"].items() if name.endswith(".safetensors")}
    size = sum(entry["bytes"] for entry in files.values())
    text = [f"model    {out}: {len(plan.jobs):,} tensors, {size / 1e9:.2f} GB in {len(files)} file(s)"]
    text += [f"report   {report}"] if report else []
    text += [f"note     {note}" for note in (*record["meta"]["notes"], *record["meta"]["repaired"])]
    return Shown({"out": str(out), "tensors": len(plan.jobs), "bytes": size, **record}, "\n".join(text))


def planned(config: Path) -> Any:
    """The plan of a recipe, from the headers of its models."""
    from trine.merge.models import open_models
    from trine.merge.reading import load_recipe
    from trine.merge.tokens import plan_merge

    gc.disable()  # a plan is a million objects that stay, and the search among them for cycles took a third of its time
    try:
        recipe = load_recipe(config)
        return plan_merge(recipe, open_models(recipe.models))
    finally:
        gc.freeze()
        gc.enable()


def write_report(plan: Any, out: Path, options: Any, page: Path, progress: Any) -> None:
    """Measure the merge of `plan` in `out` and write its page."""
    from trine.manifest import read_manifest
    from trine.merge.figures import figures
    from trine.report.merge import write_merge_report

    write_merge_report(figures(plan, out, options, progress), {"name": out.name, **read_manifest(out)["meta"]}, page)


def _dry_run(plan: Any, out: Path, options: Any) -> Shown:
    from dataclasses import asdict

    from trine.merge.estimate import estimate
    from trine.merge.layout import lay_out

    found = estimate(plan, options)
    files = lay_out(plan.jobs, options.shard_bytes)
    record = {
        "out": str(out),
        "method": plan.recipe.method,
        "donor": str(plan.donor),
        **asdict(found),
        "files": {file.name: file.size for file in files},
        "notes": plan.notes,
    }
    lines = [
        f"into {out}, nothing written by this command:",
        f"  method     {plan.recipe.method}, {len(plan.models)} models, config and tokenizer of '{plan.donor}'",
        f"  reads      {found.read_bytes / 1e9:.2f} GB",
        f"  writes     {found.write_bytes / 1e9:.2f} GB, {found.tensors:,} tensors in {len(files)} file(s)",
        f"  memory     about {found.memory_bytes / 2**20:,.0f} MiB",
        f"  time       about {clock(found.seconds)} on this machine, inputs cached",
        *(f"  note       {note}" for note in plan.notes),
    ]
    return Shown(record, "\n".join(lines))
