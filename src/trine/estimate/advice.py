"""What to change in a config whose run does not fit, each change tried on the estimate."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from trine.estimate.machine import Machine
from trine.estimate.shape import layer_kinds, with_layers
from trine.estimate.size import Size, measure_size
from trine.estimate.trial import Trial
from trine.model.config import ModelConfig
from trine.model.shape import Shape
from trine.optim.config import OptimConfig
from trine.train.config import TrainConfig


def advise(
    shape: Shape,
    optim: OptimConfig,
    train: TrainConfig,
    size: Size,
    trial: Trial | None,
    machine: Machine,
    plan: dict[str, Any],
) -> list[dict[str, Any]]:
    """Single changes, smallest loss first: {"key", "value", "needed"} with the bytes needed after it."""
    found: list[dict[str, Any]] = []
    if not plan["fits"]["memory"]:
        room = machine.memory - (plan["memory"]["needed"] - size.static - (trial.working if trial else 0))
        found += _smaller_batch(train, size, trial, room)
        found += _recompute(shape, train, size, trial, room)
        found += _muon(shape, optim, train, size, trial, room)
        found += _fewer_layers(shape, optim, train, trial, room)
    if not plan["fits"]["disk"]:
        found += _fewer_checkpoints(train, size, machine)
    return found


def _change(key: str, value: Any, needed: float) -> dict[str, Any]:
    return {"key": key, "value": value, "needed": round(needed)}


def _smaller_batch(train: TrainConfig, size: Size, trial: Trial | None, room: int) -> list[dict[str, Any]]:
    if trial is None:
        return []
    rows = train.micro_batch_sequences
    for fewer in range(rows - 1, 0, -1):
        needed = size.static + trial.working - trial.activations * (1 - fewer / rows)
        if train.batch_sequences % fewer == 0 and needed <= room:
            return [_change("train.micro_batch_sequences", fewer, needed)]
    return []


def _recompute(shape: Shape, train: TrainConfig, size: Size, trial: Trial | None, room: int) -> list[dict[str, Any]]:
    """With recomputation every layer keeps its input, and one layer at a time all of its activations."""
    if trial is None or train.recompute:
        return []
    layers, width = len(layer_kinds(shape)), 4 if train.dtype == "float32" else 2
    inputs = layers * train.micro_batch_sequences * train.sequence_length * shape.hidden_size * width
    needed = size.static + trial.working - trial.activations * (1 - 1 / layers) + inputs
    return [_change("train.recompute", True, needed)] if needed <= room else []


def _muon(
    shape: Shape, optim: OptimConfig, train: TrainConfig, size: Size, trial: Trial | None, room: int
) -> list[dict[str, Any]]:
    if optim.matrices == "muon" or train.only is not None or train.lora is not None:
        return []
    other = measure_size(shape, optim.model_copy(update={"matrices": "muon"}), train.sequence_length)
    needed = other.static + (trial.working if trial else 0)
    return [_change("optim.matrices", "muon", needed)] if needed <= room else []


def _fewer_layers(
    shape: Shape, optim: OptimConfig, train: TrainConfig, trial: Trial | None, room: int
) -> list[dict[str, Any]]:
    """The deepest model of this shape that fits; a model that is given cannot be cut."""
    if not isinstance(shape, ModelConfig) or train.init_from is not None or train.only is not None:
        return []
    layers = shape.num_hidden_layers

    def needed(count: int) -> float:
        size = measure_size(with_layers(shape, range(count)), optim, train.sequence_length)
        return size.static + (trial.working * count / layers if trial else 0)

    fit = bisect_right(range(1, layers), room, key=needed)
    return [_change("model.num_hidden_layers", fit, needed(fit))] if fit else []


def _fewer_checkpoints(train: TrainConfig, size: Size, machine: Machine) -> list[dict[str, Any]]:
    kept = (machine.disk - size.export) // size.checkpoint - 1
    if kept < 1 or kept >= train.keep_checkpoints:
        return []
    return [_change("train.keep_checkpoints", int(kept), (kept + 1) * size.checkpoint + size.export)]
