"""What a study takes, before any of it is done: runs and tokens counted, time from a few steps of each model."""

from __future__ import annotations

from typing import Any

from trine.chain import plan_of
from trine.errors import BadInput
from trine.progress import Progress
from trine.recipe import with_vocabulary
from trine.study.runner import FORWARD_SHARE
from trine.study.spectrum.config import StartConfig
from trine.study.spectrum.layout import Cell, Layout
from trine.train.config import TrainConfig
from trine.train.timeline import Timeline

_PAIR_SHARE = 0.4
"""Tokens of a question's prompt and answer, of a sequence: what `passages` takes, about what short chats have."""
_ANSWERS = 4


def budget(layout: Layout, progress: Progress) -> dict[str, Any]:
    """{"models": [...], "cells": [...], "runs", "tokens", "seconds"}: seconds at the speed of training in full, all
    cores at work, evaluation included. A grid whose best lies at its end adds runs; what is frozen takes less.
    """
    models = {one.name: _model(layout, one, progress) for one in layout.config.models}
    cells = [_cell(layout, cell, models[cell.model.name]) for cell in layout.cells]
    seconds = sum(one["seconds"] for one in [*models.values(), *cells])
    runs, tokens = sum(one["runs"] for one in cells), sum(one["tokens"] for one in cells)
    return {"models": list(models.values()), "cells": cells, "runs": runs, "tokens": tokens, "seconds": seconds}


def _model(layout: Layout, model: StartConfig, progress: Progress) -> dict[str, Any]:
    """Size of a model, speed of its pretraining, measured, and seconds of it."""
    config = layout.start(model).config
    data = layout.pretraining_data().config
    assert config.train is not None
    train = config.train.model_copy(update={"tokens": None})
    sized = with_vocabulary(config.model_copy(update={"tokenizer": data.tokenizer, "train": train}))
    plan = plan_of(config.model_copy(update={"model": sized, "train": train}), layout.out / "none", True, progress)
    if plan["time"] is None:
        raise BadInput(f"'{model.name}': {plan['note'] or 'the machine has not the memory for it'}")
    tokens, seconds = plan["work"]["tokens"], plan["time"]["steps_seconds"]
    size = {"parameters": plan["model"]["parameters"], "active": plan["model"]["active"]}
    return {"name": model.name, **size, "tokens": tokens, "tokens_per_second": tokens / seconds, "seconds": seconds}


def _cell(layout: Layout, cell: Cell, model: dict[str, Any]) -> dict[str, Any]:
    config, study = layout.tuning(cell), layout.config
    assert config.train is not None
    each = Timeline(config.train, config.optim.schedule).tokens(config.train.steps)
    grids = [len((arm.learning_rate or study.learning_rate).values) for arm in study.arms]
    runs = sum(grids) + len(study.arms) * (len(study.seeds) - 1)
    work = runs * (each + _evaluation(config.train))
    return {
        "name": cell.name,
        "runs": runs,
        "tokens_each": each,
        "tokens": runs * each,
        "seconds": work / model["tokens_per_second"],
    }


def _evaluation(train: TrainConfig) -> float:
    """What a run's scores cost at most, in tokens trained on: a third of those read."""
    every = train.eval.every_steps or max(1, train.steps // 10)
    times = -(-train.steps // every)
    pairs = (train.eval.questions + train.eval.passages) * _ANSWERS
    sets = len(train.eval.sets or ()) or 2
    read = sets * (train.eval.max_tokens + pairs * _PAIR_SHARE * train.sequence_length)
    return times * read * FORWARD_SHARE
