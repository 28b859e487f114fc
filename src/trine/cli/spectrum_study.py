"""trine spectrum study: every way to train, of every model on every data, compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from trine.cli.live import clock, watching
from trine.cli.result import Shown
from trine.cli.words import Options

if TYPE_CHECKING:
    from trine.study.spectrum.layout import Layout

_VERB_OPTIONS = ("out", "jobs", "evidence", "report", "background", "dry-run", "json", "help")


def study(
    file: Annotated[Path, Parameter(help="The study's file.")],
    /,
    *words: Options,
    out: Annotated[Path, Parameter(help="Folder of everything; the same again goes on.")] = Path("runs/spectrum"),
    jobs: Annotated[int | None, Parameter(help="Runs at a time. Default: cores over train.threads.")] = None,
    evidence: Annotated[
        Path | None,
        Parameter(
            help="The page to write, beside a folder of its name, without ending, with plots and the figures of "
            "every run. Runs found there are not trained again. Default: OUT/spectrum-study.md."
        ),
    ] = None,
    report: Annotated[bool, Parameter(help="Train nothing: write the page from what is finished.")] = False,
    background: Annotated[
        bool, Parameter(help="Go on without this terminal; what is said goes to OUT/study.log.")
    ] = False,
    dry_run: Annotated[
        bool, Parameter(help="Say what it will take, the speed measured by some steps, and write nothing.")
    ] = False,
) -> Shown:
    """Pretrain models, fine-tune them in full, by Spectrum, by LoRA and by controls, compare, and write it up.

    The study's file names models, data and arms; its fields are options. The same command again goes on where it
    stopped, killed or not.

    Example: trine spectrum study recipes/studies/spectrum.yaml --out runs/spectrum --background
    """
    from trine.config.load import load_config
    from trine.study.spectrum.config import SpectrumStudyConfig
    from trine.study.spectrum.layout import Layout

    config = load_config(SpectrumStudyConfig, file, words, verb_options=_VERB_OPTIONS).config
    page = evidence or out / "spectrum-study.md"
    layout = Layout(file, config, out, page.with_suffix("") / "runs")
    if dry_run:
        return _budget(layout)
    if background:
        return _detached(out)
    made: dict[str, Any] = {"out": str(out), "evidence": str(page)}
    found = _report(layout, page) if report else _work(layout, page, jobs, made)
    made["comparisons"] = [{key: value for key, value in one.items() if key != "shown"} for one in found]
    text = [
        f"{one['cell']}, {one['figure']}: {one['arm']} less {one['against']} {one['shown']} {one['verdict']}"
        for one in found
    ]
    return Shown(made, "\n".join([*text, f"evidence {page}"]))


def _work(layout: Layout, page: Path, jobs: int | None, made: dict[str, Any]) -> list[dict[str, Any]]:
    from trine.cli.study import jobs_for
    from trine.manifest import locked
    from trine.study.runner import run_program
    from trine.study.spectrum.cells import program
    from trine.study.spectrum.prepare import prepare

    layout.out.mkdir(parents=True, exist_ok=True)
    with locked(layout.out), watching() as watch:
        prepare(layout, watch)
        runs = program(layout)
        made |= run_program(runs, jobs or jobs_for(runs), watch)
        return _report(layout, page)


def _report(layout: Layout, page: Path) -> list[dict[str, Any]]:
    from trine.study.spectrum.cells import program
    from trine.study.spectrum.page import write_page

    runs = program(layout)
    page.parent.mkdir(parents=True, exist_ok=True)
    return write_page(layout, runs, page)


def _detached(out: Path) -> Shown:
    """The same command in a session of its own."""
    out.mkdir(parents=True, exist_ok=True)
    words = [word for word in sys.argv if word not in ("--background", "--json")]
    with (out / "study.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    record = {"process": process.pid, "log": str(out / "study.log")}
    return Shown(record, f"process  {process.pid}, which says in {record['log']} how far it is")


def _budget(layout: Layout) -> Shown:
    from trine.study.spectrum.budget import budget

    with watching() as watch:
        record = budget(layout, watch.progress)
    lines = [
        f"model    {one['name']}: {one['parameters']:,} parameters, {one['active']:,} active; pretrained on "
        f"{one['tokens'] / 1e6:.1f} M tokens at {one['tokens_per_second']:,.0f} tokens/s in {clock(one['seconds'])}"
        for one in record["models"]
    ]
    lines += [
        f"cell     {one['name']}: {one['runs']} runs of {one['tokens_each'] / 1e6:.2f} M tokens, "
        f"{clock(one['seconds'])}"
        for one in record["cells"]
    ]
    lines.append(
        f"in all   {record['runs']} runs, {record['tokens'] / 1e6:,.0f} M tokens, about {clock(record['seconds'])}; "
        "frozen weights make it less, learning rates at their grid's end more"
    )
    return Shown(record, "\n".join(lines))
