"""trine study: train the arms of studies, and write up what they say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from trine.cli.live import watching
from trine.cli.result import Shown
from trine.cli.words import DryRun, Options
from trine.errors import BadInput

if TYPE_CHECKING:
    from trine.study.plan import Program


def study(
    *words: Options,
    out: Annotated[Path, Parameter(help="Folder of all runs; the same again goes on.")] = Path("runs/studies"),
    arm: Annotated[str | None, Parameter(help="Train this arm alone (and the grid it takes its rate from).")] = None,
    scale: Annotated[float, Parameter(help="Times the tokens, and the square root of it times every width.")] = 1.0,
    jobs: Annotated[int | None, Parameter(help="Runs at a time. Default: cores over train.threads.")] = None,
    evidence: Annotated[
        Path | None,
        Parameter(
            help="The page to write, beside a folder of its name, without ending, with plots and the figures of "
            "every run. Runs found there are not trained again. Default: OUT/evidence.md."
        ),
    ] = None,
    report: Annotated[bool, Parameter(help="Train nothing: write the page from what is finished.")] = False,
    dry_run: DryRun = False,
) -> Shown:
    """Train every arm of the given studies once per seed, tune their learning rates, compare them, write it up.

    WORDS are study files, then options of their base (its inputs, any field). The same command again goes on where it
    stopped; runs that studies have in common are trained once.

    Example: trine study recipes/studies/muon.yaml recipes/studies/rsdb.yaml --data texts --out runs/studies
    """
    from trine.study.plan import Program

    paths, options = _split(words)
    page = evidence or out / "evidence.md"
    kept = page.with_suffix("") / "runs"
    program = Program(paths, out, kept=kept, options=options, scale=scale, arm=arm)
    if dry_run:
        return _plan(program)
    from trine.study.evidence import write_evidence
    from trine.study.runner import run_program

    made: dict[str, object] = {"out": str(out), "evidence": str(page)}
    if not report:
        with watching() as watch:
            made |= run_program(program, jobs or jobs_for(program), watch)
    page.parent.mkdir(parents=True, exist_ok=True)
    found = write_evidence(program, page)
    findings = [one for some in found.values() for one in some]
    made["claims"] = [one.claim.model_dump() | {"verdict": one.verdict, "effect": one.effect} for one in findings]
    text = [
        f"{one.claim.arm} / {one.claim.against}, {one.claim.measure}: {one.effect} {one.verdict}" for one in findings
    ]
    return Shown(made, "\n".join([*text, f"evidence {page}"]))


def _split(words: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if not first:
        raise BadInput("name at least one study: trine study recipes/studies/muon.yaml")
    names = [Path(word).stem for word in words[:first]]
    if len(set(names)) < len(names):
        raise BadInput(f"two studies have the same name ({', '.join(names)}); name each file once")
    return [Path(word) for word in words[:first]], list(words[first:])


def jobs_for(program: Program) -> int:
    """Runs at a time that the cores of this process have room for."""
    cores = len(os.sched_getaffinity(0))
    train = program.runs(presume=True)[0].loaded.config.train
    return max(1, cores // ((train.threads if train else None) or cores))


def _plan(program: Program) -> Shown:
    runs = program.runs(presume=True)
    total = sum(one.tokens for one in runs)
    done = [one.result() is not None for one in runs]
    lines = [
        f"{'done' if yes else 'to do':6} {one.folder} ({one.tokens:,} tokens)"
        for yes, one in zip(done, runs, strict=True)
    ]
    record = {"runs": len(runs), "done": sum(done), "tokens": total, "folders": [str(one.folder) for one in runs]}
    lines.append(
        f"{len(runs)} runs, {sum(done)} done, {total:,} tokens; a learning rate that is open is counted as the"
    )
    lines.append("middle of its grid, and a grid whose best lies at its end adds runs")
    return Shown(record, "\n".join(lines))
