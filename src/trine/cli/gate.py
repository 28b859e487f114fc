"""trine gate: a yes or no to a new model, by what it forgot and what it learned."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from trine.cli.eval import (
    BatchTokens,
    Data,
    Dtype,
    IncludePath,
    Limit,
    MaxLength,
    Network,
    UnsafeCode,
    check_out,
    describe,
    find_tasks,
    open_scorer,
    planned,
)
from trine.cli.live import watching
from trine.cli.models import model_folder
from trine.cli.result import Shown
from trine.cli.words import DryRun, command_line
from trine.errors import BadInput, CheckFailed
from trine.manifest import publish, seal

if TYPE_CHECKING:
    from trine.cli.live import Bars, Plain
    from trine.evaluate.items import Task
    from trine.evaluate.runner import Finished

Specs = Annotated[
    tuple[str, ...],
    Parameter(help="Suites, tasks, files or folders of text, as in `trine eval`.", consume_multiple=True),
]


def gate(
    *,
    base: Annotated[Path, Parameter(help="The model to compare with: a folder, a checkpoint or a run.")],
    new: Annotated[Path, Parameter(help="The model that is to pass.")],
    general: Specs,
    domain: Specs,
    out: Annotated[Path, Parameter(help="The folder to make: gate.json, gate.html, items.jsonl, base/, new/.")],
    max_general_loss: Annotated[str, Parameter(help="Most that general sets may lose, of the base's value.")] = "1%",
    min_domain_gain: Annotated[str, Parameter(help="Least that domain sets must gain, of the base's value.")] = "5%",
    data: Data = None,
    include_path: IncludePath = (),
    limit: Limit = None,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 8192,
    dtype: Dtype = "float32",
    device: str = "cpu",
    seed: Annotated[int, Parameter(help="Of the bootstrap's draws.")] = 0,
    allow_network: Network = False,
    confirm_run_unsafe_code: UnsafeCode = False,
    dry_run: DryRun = False,
) -> Shown:
    """Pass a model when, at the worse end of paired 95 % intervals, it lost little in general and gained in its domain.

    Exit codes: 0 passed, 3 failed (the folder is there all the same), 1 could not run, 2 bad input.

    Example: trine gate --base base --new tuned --general books --domain filings --data texts --out gated
    """
    from trine.evaluate.gate import Limits, judge, read_share

    limits = Limits(
        read_share(max_general_loss, "--max-general-loss"), read_share(min_domain_gain, "--min-domain-gain")
    )
    check_out(out)
    for option, words in (("--general", general), ("--domain", domain)):
        if not words:
            raise BadInput(f"{option}: name at least one suite, task or folder of text")
    found = (data, limit, include_path, allow_network, confirm_run_unsafe_code)
    sides = {"general": find_tasks(general, *found), "domain": find_tasks(domain, *found)}
    tasks = _checked(sides)
    if dry_run:
        return planned(tasks, out)
    from trine.evaluate.runner import partial_folder

    work, models = partial_folder(out), {}
    with watching() as watch:
        folders = {"base": model_folder(base, watch), "new": model_folder(new, watch)}
        work.mkdir(parents=True, exist_ok=True)
        for name, folder in folders.items():
            options = (dtype, device, max_length, batch_tokens)
            models[name] = _measured(folder, tasks, work / name, options, watch)
    pairs = _paired(sides, models["base"][1], models["new"][1])
    about = {name: one for name, (one, _) in models.items()}
    verdict = judge(pairs["general"], pairs["domain"], limits, seed)
    record = {"passed": verdict.pop("passed"), **verdict, **about, "command": command_line()}
    _publish(out, record, pairs, models)
    shutil.rmtree(work, ignore_errors=True)
    text = _text(record, out)
    if not record["passed"]:
        raise CheckFailed(text, {"out": str(out), **record})
    return Shown({"out": str(out), **record}, text)


def _checked(sides: dict[str, list[Task]]) -> list[Task]:
    """All sets, of which none may stand on both sides. Raises BadInput."""
    from trine.evaluate.gate import LEAST_ITEMS

    both = {one.name for one in sides["general"]} & {one.name for one in sides["domain"]}
    if both:
        raise BadInput(f"{', '.join(sorted(both))}: on both sides; a set is either general or domain")
    tasks = [*sides["general"], *sides["domain"]]
    for one in tasks:
        if (items := one.sizes()["items"]) < LEAST_ITEMS:
            raise BadInput(f"set '{one.name}': {items} item; an interval needs at least {LEAST_ITEMS}")
    return tasks


def _measured(
    folder: Path, tasks: list[Task], work: Path, options: tuple[Any, ...], watch: Plain | Bars
) -> tuple[dict[str, Any], list[Finished]]:
    """What a model scores, and what is said of it; its memory is given back."""
    from trine.evaluate.runner import run_tasks

    dtype, *_ = options
    scorer = open_scorer(folder, *options)
    about = describe(scorer, dtype, command_line())
    request = {key: about[key] for key in ("fingerprint", "dtype", "longest")}
    finished = run_tasks(scorer, tasks, work, request, watch.progress)
    del scorer
    gc.collect()
    return about, finished


def _paired(sides: dict[str, list[Task]], base: list[Finished], new: list[Finished]) -> dict[str, list[Any]]:
    from trine.evaluate.pairing import pair

    before, after = {one.name: one for one in base}, {one.name: one for one in new}
    names = ("the base", "the new model")
    return {side: [pair([before[one.name], after[one.name]], names) for one in tasks] for side, tasks in sides.items()}


def _publish(out: Path, record: dict[str, Any], pairs: dict[str, list[Any]], models: dict[str, Any]) -> None:
    from trine.evaluate.gate import item_rows
    from trine.evaluate.runner import KIND, write_results
    from trine.report.evidence import write_gate

    with publish(out, "gate", {"passed": record["passed"]}) as folder:
        (folder / "gate.json").write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        rows = [row for side, sets in pairs.items() for row in item_rows(side, sets)]
        (folder / "items.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        for name, (about, finished) in models.items():
            (folder / name).mkdir()
            write_results(folder / name, finished, about)
            seal(folder / name, KIND, {"model": about["folder"]})
        write_gate(record, out.name, folder / "gate.html")


def _text(record: dict[str, Any], out: Path) -> str:
    lines = []
    for side in ("general", "domain"):
        one = record[side]
        high = "beyond" if one["high"] is None else f"{one['high']:+.2%}"
        floor = -one["limit"] if side == "general" else one["limit"]
        word = "passed" if one["passed"] else "failed"
        lines.append(f"{side}: {one['change']:+.2%} (95 %: {one['low']:+.2%} to {high}), at least {floor:+.2%}: {word}")
    return "\n".join([*lines, f"gate {'passed' if record['passed'] else 'failed'}: {out / 'gate.html'}"])
