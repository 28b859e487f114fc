"""Finished evaluations on disk, and the items that several of them have in common."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trine.errors import BadInput, TrineError
from trine.evaluate.items import weighted_mean
from trine.evaluate.runner import ITEMS, KIND, RESULTS, Finished
from trine.manifest import verify


@dataclass(frozen=True)
class Evaluation:
    """A folder that `trine eval` published."""

    folder: Path
    model: dict[str, Any]
    tasks: dict[str, Finished]


@dataclass(frozen=True)
class Paired:
    """One task's items that every model answered."""

    name: str
    metric: str
    higher_is_better: bool
    ids: list[str]
    scores: np.ndarray
    """fp64 [models, items]."""
    weights: np.ndarray
    """fp64 [items]."""
    groups: list[str]
    unpaired: int
    """Items that some model lacks."""

    def values(self) -> list[float]:
        """Each model's value over these items."""
        return [weighted_mean(one.tolist(), self.weights.tolist()) for one in self.scores]


def read_evaluation(folder: Path) -> Evaluation:
    """Raises BadInput for a folder that is none, TrineError for a damaged one."""
    if (folder / "config.json").is_file():
        raise BadInput(f"{folder}: is a model; measure it first: trine eval {folder} --tasks ... --out ...")
    verify(folder, KIND)
    record = json.loads((folder / RESULTS).read_text())
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in record["tasks"]}
    for line in (folder / ITEMS).read_text().splitlines():
        row = json.loads(line)
        rows[row["task"]].append(row)
    tasks = {name: Finished(name, figures, rows[name]) for name, figures in record["tasks"].items()}
    return Evaluation(folder, record["model"], tasks)


def pair(finished: Sequence[Finished], names: Sequence[str]) -> Paired:
    """The items that all have, in the first one's order. Raises BadInput when they do not ask the same.

    `names` are the models', for messages.
    """
    task, first = finished[0].name, finished[0].figures
    for one, name in zip(finished[1:], names[1:], strict=True):
        for key in ("metric", "higher_is_better"):
            if one.figures[key] != first[key]:
                raise BadInput(f"task '{task}': {key} is {first[key]} in {names[0]} and {one.figures[key]} in {name}")
    tables = [{row["id"]: row for row in one.items} for one in finished]
    ids = [row["id"] for row in finished[0].items if all(row["id"] in table for table in tables)]
    for table, name in zip(tables[1:], names[1:], strict=True):
        for item in ids:
            for key in ("prompt_sha256", "weight"):
                if table[item][key] != tables[0][item][key]:
                    raise BadInput(f"task '{task}': item {item} has another {key} in {name} than in {names[0]}")
    if not ids:
        raise BadInput(f"task '{task}': no item is in all of {', '.join(names)}")
    scores = [[math.nan if table[i]["score"] is None else table[i]["score"] for i in ids] for table in tables]
    rows = [tables[0][i] for i in ids]
    return Paired(
        task,
        first["metric"],
        first["higher_is_better"],
        ids,
        np.array(scores, np.float64),
        np.array([row["weight"] for row in rows], np.float64),
        [row["group"] for row in rows],
        len({i for table in tables for i in table}) - len(ids),
    )


def require_finite(paired: Paired, names: Sequence[str]) -> None:
    """Raise TrineError naming the first item without a score."""
    for scores, name in zip(paired.scores, names, strict=True):
        wrong = np.flatnonzero(~np.isfinite(scores))
        if len(wrong):
            raise TrineError(
                f"task '{paired.name}': {len(wrong)} of {len(paired.ids)} items have no finite {paired.metric} "
                f"in {name}, first {paired.ids[wrong[0]]}"
            )
