"""The plan of a run: what it needs, beside what the machine has."""

from __future__ import annotations

from typing import Any

import torch

from trine.estimate.advice import advise
from trine.estimate.frozen import Frozen, frozen_part
from trine.estimate.machine import Machine
from trine.estimate.probing import ProbeTimeout
from trine.estimate.shape import layer_kinds
from trine.estimate.size import Size, measure_size
from trine.estimate.trial import Trial, run_trial
from trine.model.shape import Shape
from trine.optim.config import OptimConfig
from trine.progress import Progress, silent
from trine.train.config import TrainConfig
from trine.train.meters import used_bytes
from trine.train.setup import pick_device
from trine.train.timeline import Span, Timeline

_LOGIT_BYTES = 4


def make_plan(
    shape: Shape,
    optim: OptimConfig,
    train: TrainConfig,
    machine: Machine,
    probe: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The plan as JSON values: model, work, memory, disk and time; `fits` and, where it does not, `advice`.

    Memory is that of the largest micro-batch of any phase. Without `probe`, only what follows from shapes is told:
    `memory.peak` and `time` are None.
    """
    timeline, frozen = Timeline(train, optim.schedule), frozen_part(shape, train)
    spans = timeline.spans
    largest = max(spans, key=_micro_batch_tokens).train
    size = measure_size(shape, optim, largest.sequence_length, frozen)
    trial, note = None, None
    if probe and size.static < machine.memory:
        try:
            trial = run_trial(shape, optim, largest, machine.memory, progress, frozen)
        except ProbeTimeout as error:
            note = f"{error}: time and the peak of memory are not known"
    memory, disk = _memory(size, largest, trial, machine), _disk(size, train, machine)
    plan: dict[str, Any] = {
        "model": {
            "parameters": size.parameters,
            "active": size.active,
            "trained": size.gradients // 4,
            "layers": len(layer_kinds(shape)),
            "vocabulary": size.vocabulary,
        },
        "work": _work(shape, optim, timeline, frozen),
        "machine": {"device": machine.device, "threads": machine.threads},
        "memory": memory,
        "disk": disk,
        "note": note,
    }
    flops = size.flops_per_token * largest.batch_sequences * largest.sequence_length
    plan["time"] = None if trial is None else _time(trial, flops, plan["work"])
    plan["fits"] = {"memory": memory["needed"] <= machine.memory, "disk": disk["needed"] <= machine.disk}
    if probe and trial is None and note is None:
        plan["fits"]["memory"] = False
    plan["advice"] = advise(shape, optim, largest, size, trial, machine, plan)
    return plan


def _micro_batch_tokens(span: Span) -> tuple[int, int]:
    train = span.train
    return train.micro_batch_sequences * train.sequence_length, train.batch_sequences


def _work(shape: Shape, optim: OptimConfig, timeline: Timeline, frozen: Frozen | None) -> dict[str, Any]:
    """Steps, tokens and FLOPs; those of one step are of the settings that most steps have."""
    spans = timeline.spans
    lengths = {span.train.sequence_length for span in spans}
    per_token = {length: measure_size(shape, optim, length, frozen).flops_per_token for length in lengths}
    usual = max(spans, key=lambda span: span.steps)
    return {
        "steps": sum(span.steps for span in spans),
        "tokens": spans[-1].end_token,
        "tokens_per_step": usual.tokens_per_step,
        "flops_per_token": per_token[usual.train.sequence_length],
        "flops": timeline.flops(per_token),
    }


def _memory(size: Size, train: TrainConfig, trial: Trial | None, machine: Machine) -> dict[str, Any]:
    """Bytes by kind. `peak` is what the run adds to a process that has imported everything, in memory of its own;
    `needed` all of it, with the weights that stay in the pages of their file (`mapped`).
    """
    here = used_bytes(torch.device("cpu")) if pick_device(train.device).type == "cpu" else 0
    tokens = min(train.loss_chunk_tokens, train.micro_batch_sequences * train.sequence_length)
    chunk = tokens * size.vocabulary * _LOGIT_BYTES
    peak = None if trial is None else size.own + trial.working
    return {
        "weights": size.weights,
        "mapped": size.mapped,
        "gradients": size.gradients,
        "optimizer": size.optimizer,
        "activations": None if trial is None else trial.activations,
        "loss_chunk": chunk,
        "other": None if trial is None else max(0, trial.working - trial.activations - chunk),
        "peak": peak,
        "needed": here + size.mapped + (size.own if peak is None else peak),
        "available": machine.memory,
    }


def _disk(size: Size, train: TrainConfig, machine: Machine) -> dict[str, Any]:
    """Bytes of the run folder; one checkpoint more than is kept exists while the newest is written."""
    return {
        "checkpoint": size.checkpoint,
        "checkpoints": (train.keep_checkpoints + 1) * size.checkpoint,
        "export": size.export,
        "needed": (train.keep_checkpoints + 1) * size.checkpoint + size.export,
        "available": machine.disk,
    }


def _time(trial: Trial, flops: float, work: dict[str, Any]) -> dict[str, Any]:
    """Seconds, from those of a step of `flops`. Evaluations and checkpoints come on top."""
    usual = work["flops_per_token"] * work["tokens_per_step"] / flops
    mean = work["flops"] / work["steps"] / flops
    optimizer = trial.parts["optimizer"]
    return {
        "step_seconds": trial.step_seconds(usual),
        "parts": {part: seconds * usual for part, seconds in trial.parts.items()} | {"optimizer": optimizer},
        "steps_seconds": trial.step_seconds(mean) * work["steps"],
        "probe": {"layers": trial.layers, "seconds": trial.seconds},
    }
