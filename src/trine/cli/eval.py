"""trine eval: a model measured by tasks, each item kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from trine.cli.live import clock, watching
from trine.cli.models import model_folder
from trine.cli.result import Shown
from trine.cli.words import DryRun, command_line
from trine.errors import BadInput

if TYPE_CHECKING:
    from trine.evaluate.items import Task

Dtype = Literal["float32", "bfloat16", "float16", "auto"]
Data = Annotated[Path | None, Parameter(help="The folder with the tasks' data; texts are looked for in it too.")]
IncludePath = Annotated[
    tuple[Path, ...], Parameter(help="Folders of task YAML for lm-evaluation-harness.", consume_multiple=True)
]
Limit = Annotated[int | None, Parameter(help="Items of each task, at most.", validator=Number(gte=1))]
MaxLength = Annotated[int | None, Parameter(help="Tokens read at once. Default: the model's positions, at most 8,192.")]
BatchTokens = Annotated[int, Parameter(help="Tokens computed at once, padding included.", validator=Number(gte=1))]
Network = Annotated[bool, Parameter(help="Let lm-evaluation-harness fetch data sets it does not find on disk.")]

UnsafeCode = Annotated[bool, Parameter(help="Let tasks such as mbpp_plus run the code that the model writes.")]


def eval(
    model: Annotated[Path, Parameter(help="A model folder, a checkpoint, or a run, finished or not.")],
    /,
    *,
    tasks: Annotated[
        tuple[str, ...],
        Parameter(help="Suites, tasks (NAME or NAME:key=value,...), files or folders of text.", consume_multiple=True),
    ],
    out: Annotated[Path, Parameter(help="The folder to make; it must not exist yet.")],
    data: Data = None,
    include_path: IncludePath = (),
    limit: Limit = None,
    max_length: MaxLength = None,
    batch_tokens: BatchTokens = 8192,
    dtype: Dtype = "float32",
    device: str = "cpu",
    allow_network: Network = False,
    confirm_run_unsafe_code: UnsafeCode = False,
    dry_run: DryRun = False,
) -> Shown:
    """Measure a model: results.json holds each task's figures, items.jsonl what came of every item.

    All data is found before any work. Killed, the same command goes on with the tasks that are left.

    Example: trine eval runs/quickstart --tasks tat-qa heldout-texts --data data --out scores

    Example: trine eval model --tasks offline needle:length=2048,depth=0.5 --data data --out scores --dry-run
    """
    check_out(out)
    made = find_tasks(tasks, data, limit, include_path, allow_network, confirm_run_unsafe_code)
    if dry_run:
        return planned(made, out)
    from trine.evaluate.runner import partial_folder, publish_results, run_tasks

    with watching() as watch:
        folder = model_folder(model, watch)
        scorer = open_scorer(folder, dtype, device, max_length, batch_tokens)
        about = describe(scorer, dtype, command_line())
        request = {key: about[key] for key in ("fingerprint", "dtype", "longest")}
        finished = run_tasks(scorer, made, partial_folder(out), request, watch.progress)
        record = publish_results(out, finished, about)
    return Shown({"out": str(out), **record}, "\n".join([*table(record["tasks"]), f"scores   {out}"]))


def check_out(out: Path) -> None:
    """Raise BadInput for a folder that is there."""
    if out.exists():
        raise BadInput(f"{out}: already exists; name another --out, or remove it first")


def find_tasks(
    words: tuple[str, ...],
    data: Path | None,
    limit: int | None,
    include: tuple[Path, ...],
    network: bool,
    unsafe_code: bool,
) -> list[Task]:
    """The tasks, with their data. Raises BadInput naming all that is missing."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress is shown in one way
    if not network:
        os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    from trine.evaluate.catalog import Where, make_tasks

    for folder in [*include, *([data] if data else [])]:
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such folder")
    return make_tasks(words, Where(data, limit, include, network, unsafe_code))


def open_scorer(folder: Path, dtype: str, device: str, max_length: int | None, batch_tokens: int) -> Any:
    """The model in `folder`, ready to be asked. Raises BadInput."""
    from trine.evaluate.scorer import ModelScorer

    return ModelScorer(folder, dtype, device, max_length, batch_tokens)


def describe(scorer: Any, dtype: str, command: str) -> dict[str, Any]:
    """What results.json says of the model."""
    return {
        "folder": str(scorer.folder),
        "fingerprint": scorer.fingerprint(),
        "dtype": dtype,
        "longest": scorer.longest,
        "command": command,
    }


def planned(tasks: list[Task], out: Path) -> Shown:
    """What an evaluation would ask."""
    sizes = {one.name: one.sizes() for one in tasks}
    lines = [f"{name}: " + ", ".join(f"{value:,} {key}" for key, value in one.items()) for name, one in sizes.items()]
    total = sum(one["requests"] for one in sizes.values())
    return Shown(
        {"tasks": sizes, "requests": total, "out": str(out)}, "\n".join([*lines, f"total: {total:,} requests"])
    )


def table(tasks: dict[str, Any]) -> list[str]:
    """A line per task: value, error, items, time."""
    lines = []
    for name, one in tasks.items():
        value = "not finite" if one["value"] is None else f"{one['value']:.4f}"
        error = "" if one["standard_error"] is None else f" ± {one['standard_error']:.4f}"
        lines.append(f"{name}: {one['metric']} {value}{error}, {one['items']:,} items, {clock(one['seconds'])}")
        lines += [
            f"  {group or '.'}: {part['value']:.4f}"
            for group, part in one["groups"].items()
            if part["value"] is not None
        ]
    return lines
