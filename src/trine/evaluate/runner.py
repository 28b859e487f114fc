"""Tasks one after the other, each kept as it ends, and the published folder of them all.

While work goes on, `OUT.partial` holds what the request was and a file per finished task; the same request goes on
there. OUT has `results.json` (figures), `items.jsonl` (a line per item) and a manifest.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.evaluate.asking import Scorer
from trine.evaluate.items import Item, Task, summary
from trine.manifest import digest_of, publish, write_file
from trine.progress import Progress, silent

KIND, RESULTS, ITEMS = "evaluation", "results.json", "items.jsonl"


@dataclass(frozen=True)
class Finished:
    """A task's figures and its items, as they stand in the two files."""

    name: str
    figures: dict[str, Any]
    items: list[dict[str, Any]]


def run_tasks(
    scorer: Scorer, tasks: Sequence[Task], work: Path, request: dict[str, Any], progress: Progress = silent
) -> list[Finished]:
    """Run what `work` does not hold yet. `request` is all else that decides the answers, such as the model.

    Raises BadInput when `work` belongs to another request.
    """
    _open(work, {"request": request, "tasks": {one.name: one.about() for one in tasks}})
    finished = []
    for number, task in enumerate(tasks):
        path = work / f"{number}.json"
        if not path.is_file():
            started = time.monotonic()
            items = task.run(scorer, progress)
            figures = summary(task, items) | {"seconds": round(time.monotonic() - started, 3)}
            record = {"figures": figures, "items": [one.record(task.name) for one in items]}
            write_file(path, json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        record = json.loads(path.read_text())
        finished.append(Finished(task.name, record["figures"], record["items"]))
        progress(number + 1, len(tasks), "eval: tasks")
    return finished


def partial_folder(out: Path) -> Path:
    """Where finished tasks are until `out` is whole."""
    return out.with_name(f"{out.name}.partial")


def _open(work: Path, request: dict[str, Any]) -> None:
    path, digest = work / "request.json", digest_of(request)
    if path.is_file():
        if json.loads(path.read_text()).get("digest") != digest:
            raise BadInput(
                f"{work}: holds tasks of another evaluation, stopped before its end; run that one again to end it, "
                "or remove the folder"
            )
        return
    if work.exists() and any(work.iterdir()):
        raise BadInput(f"{work}: exists and holds no evaluation; name another --out, or remove it")
    work.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps({"digest": digest, **request}, ensure_ascii=False, default=str) + "\n")


def write_results(folder: Path, finished: Sequence[Finished], model: dict[str, Any]) -> dict[str, Any]:
    """Write both files into an existing folder; the record of results.json."""
    record = {"model": model, "tasks": {one.name: one.figures for one in finished}}
    lines = (json.dumps(item, ensure_ascii=False, allow_nan=False) for one in finished for item in one.items)
    (folder / ITEMS).write_text("".join(f"{line}\n" for line in lines))
    (folder / RESULTS).write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return record


def publish_results(out: Path, finished: Sequence[Finished], model: dict[str, Any]) -> dict[str, Any]:
    """Publish `out` and drop what its tasks left beside it; the record of results.json."""
    with publish(out, KIND, {"model": model["folder"], "tasks": [one.name for one in finished]}) as folder:
        record = write_results(folder, finished, model)
    shutil.rmtree(partial_folder(out), ignore_errors=True)
    return record


def as_item(row: dict[str, Any]) -> Item:
    """An item again out of its line; a score that was not finite is NaN."""
    score = row["score"]
    return Item(
        row["id"],
        float("nan") if score is None else score,
        row["weight"],
        row["group"],
        row["prompt_sha256"],
        row["prediction"],
        row["target"],
        row["bytes"],
        row["loglik"],
    )
