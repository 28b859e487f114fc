"""The plan of a run: what it needs, beside what the machine has."""

from __future__ import annotations

from typing import Any

import torch

from trine.estimate.advice import advise
from trine.estimate.machine import Machine
from trine.estimate.probe import ProbeTimeout
from trine.estimate.shape import Shape, layer_kinds
from trine.estimate.size import Size, measure_size
from trine.estimate.trial import Trial, run_trial
from trine.optim.config import OptimConfig
from trine.progress import Progress, silent
from trine.train.config import TrainConfig
from trine.train.meters import used_bytes
from trine.train.setup import pick_device

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

    Without `probe`, only what follows from shapes: `memory.peak` and `time` are None.
    """
    size = measure_size(shape, optim, train.sequence_length)
    trial, note = None, None
    if probe and size.static < machine.memory:
        try:
            trial = run_trial(shape, optim, train, machine.memory, progress)
        except ProbeTimeout as error:
            note = f"{error}: time and the peak of memory are not known"
    per_step = train.batch_sequences * train.sequence_length
    memory, disk = _memory(size, train, trial, machine), _disk(size, train, machine)
    plan: dict[str, Any] = {
        "model": {
            "parameters": size.parameters,
            "active": size.active,
            "layers": len(layer_kinds(shape)),
            "vocabulary": size.vocabulary,
        },
        "work": {
            "steps": train.steps,
            "tokens_per_step": per_step,
            "tokens": per_step * train.steps,
            "flops_per_token": size.flops_per_token,
            "flops": size.flops_per_token * per_step * train.steps,
        },
        "machine": {"device": machine.device, "threads": machine.threads},
        "memory": memory,
        "disk": disk,
        "time": None if trial is None else _time(trial, train),
        "note": note,
    }
    plan["fits"] = {"memory": memory["needed"] <= machine.memory, "disk": disk["needed"] <= machine.disk}
    if probe and trial is None and note is None:
        plan["fits"]["memory"] = False
    plan["advice"] = advise(shape, optim, train, size, trial, machine, plan)
    return plan


def _memory(size: Size, train: TrainConfig, trial: Trial | None, machine: Machine) -> dict[str, Any]:
    """Bytes by kind. `peak` is what the run adds to a process that has imported everything, `needed` all of it."""
    here = used_bytes(torch.device("cpu")) if pick_device(train.device).type == "cpu" else 0
    tokens = min(train.loss_chunk_tokens, train.micro_batch_sequences * train.sequence_length)
    chunk = tokens * size.vocabulary * _LOGIT_BYTES
    peak = None if trial is None else size.static + trial.working
    return {
        "weights": size.weights,
        "gradients": size.gradients,
        "optimizer": size.optimizer,
        "activations": None if trial is None else trial.activations,
        "loss_chunk": chunk,
        "other": None if trial is None else max(0, trial.working - trial.activations - chunk),
        "peak": peak,
        "needed": here + (size.static if peak is None else peak),
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


def _time(trial: Trial, train: TrainConfig) -> dict[str, Any]:
    return {
        "step_seconds": trial.step_seconds,
        "parts": trial.parts,
        "steps_seconds": trial.step_seconds * train.steps,
        "probe": {"layers": trial.layers, "seconds": trial.seconds},
    }
