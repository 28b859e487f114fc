"""What a task leaves: a row per item, and the task's figures computed from those rows alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from trine.evaluate.asking import Scorer
from trine.progress import Progress, silent


@dataclass(frozen=True)
class Item:
    """One thing that a task asks, and how the model did. A set's value is the mean of its scores by weight."""

    id: str
    """The same for every model, so that models are compared item by item."""
    score: float
    weight: float = 1.0
    """Of text: its bytes; of all else 1."""
    group: str = ""
    """Class of document, kind of question, subtask."""
    prompt: str = ""
    """SHA-256 of what the model was asked, 16 hex digits."""
    prediction: str | None = None
    target: str | None = None
    bytes: int | None = None
    """UTF-8 bytes that `loglik` is of."""
    loglik: float | None = None
    """In nats."""
    more: dict[str, float] = field(default_factory=dict)
    """Further metrics."""

    def record(self, task: str) -> dict[str, Any]:
        """A line of items.jsonl; numbers that are not finite are null."""
        return {
            "task": task,
            "id": self.id,
            "group": self.group,
            "prompt_sha256": self.prompt,
            "prediction": self.prediction,
            "target": self.target,
            "score": finite(self.score),
            "weight": self.weight,
            "bytes": self.bytes,
            "loglik": finite(self.loglik),
            "metrics": {name: finite(value) for name, value in self.more.items()},
        }


class Task(Protocol):
    """Something to measure a model by. Its data is read, and found whole, when it is made."""

    @property
    def name(self) -> str: ...

    @property
    def metric(self) -> str:
        """Name of the main metric, which is what items' scores are of."""
        ...

    @property
    def higher_is_better(self) -> bool: ...

    def sizes(self) -> dict[str, int]:
        """`items` and `requests`, as a plan says them."""
        ...

    def about(self) -> dict[str, Any]:
        """What decides the items, as JSON: digests of the data, options."""
        ...

    def run(self, scorer: Scorer, progress: Progress = silent) -> list[Item]:
        """Ask the model everything."""
        ...


def prompt_hash(*parts: str) -> str:
    """16 hex digits of SHA-256 over the parts, each ended by a NUL."""
    return hashlib.sha256("".join(f"{one}\0" for one in parts).encode(errors="replace")).hexdigest()[:16]


def stage(name: str) -> str:
    """A task's name as progress shows it, where a colon ends the stage."""
    return name.replace(":", " ")


def finite(value: float | None) -> float | None:
    """A number as JSON takes it: None for what is not finite."""
    return None if value is None or not math.isfinite(value) else value


def weighted_mean(scores: Sequence[float], weights: Sequence[float]) -> float:
    """Sum of score times weight over the sum of weights; NaN for no weight."""
    total = math.fsum(weights)
    return math.fsum(s * w for s, w in zip(scores, weights, strict=True)) / total if total else math.nan


def standard_error(scores: Sequence[float], weights: Sequence[float]) -> float | None:
    """Of the weighted mean, items being independent: the delta method's; None for fewer than two items."""
    if len(scores) < 2:
        return None
    score, weight = np.asarray(scores, np.float64), np.asarray(weights, np.float64)
    left = weight * (score - (weight * score).sum() / weight.sum())
    return float(np.sqrt((left**2).sum() * len(score) / (len(score) - 1)) / weight.sum())


def summary(task: Task, items: Sequence[Item]) -> dict[str, Any]:
    """A task's entry in results.json."""
    scores, weights = [one.score for one in items], [one.weight for one in items]
    groups = list(dict.fromkeys(one.group for one in items))
    return {
        "metric": task.metric,
        "higher_is_better": task.higher_is_better,
        "value": finite(weighted_mean(scores, weights)),
        "standard_error": _error(scores, weights),
        "items": len(items),
        "not_finite": sum(not math.isfinite(one) for one in scores),
        "metrics": _means(items),
        "groups": {name: _group(items, name) for name in groups} if groups != [""] else {},
        "about": task.about(),
    }


def _error(scores: Sequence[float], weights: Sequence[float]) -> float | None:
    return finite(standard_error(scores, weights)) if sum(weights) else None


def _means(items: Sequence[Item]) -> dict[str, float | None]:
    names = dict.fromkeys(name for one in items for name in one.more)
    means: dict[str, float | None] = {}
    for name in names:
        having = [one for one in items if name in one.more]
        means[name] = finite(weighted_mean([one.more[name] for one in having], [one.weight for one in having]))
    return means


def _group(items: Sequence[Item], name: str) -> dict[str, Any]:
    chosen = [one for one in items if one.group == name]
    scores, weights = [one.score for one in chosen], [one.weight for one in chosen]
    return {
        "value": finite(weighted_mean(scores, weights)),
        "standard_error": _error(scores, weights),
        "items": len(chosen),
    }
