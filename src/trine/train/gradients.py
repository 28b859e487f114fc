"""How large each matrix's gradient is on a run's first batches, for choosing what to train.

One gradient exists at a time: as soon as a parameter's is whole, its norms are taken and it is dropped.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trine.data.loader import batches
from trine.errors import BadInput, Diverged
from trine.model.config import ModelConfig
from trine.model.hf import LanguageModel, load_model
from trine.optim.config import OptimConfig
from trine.progress import Progress, silent
from trine.train.config import TrainConfig
from trine.train.loss import chunked_cross_entropy
from trine.train.setup import deterministic, prepare
from trine.train.stream import training_stream
from trine.weights.names import hub_parts
from trine.weights.selected import GRADIENTS_FORMAT


def measure_gradients(
    optim: OptimConfig, train: TrainConfig, tokens: Path, count: int, progress: Progress = silent
) -> dict[str, Any]:
    """Of every matrix of `train.init_from`, by Hub name: sqrt of the mean over batches of |gradient|^2, Frobenius.

    A batch is one of the first `count` micro-batches of the run; its loss is the mean cross-entropy. Weights and
    gradients are fp32, products as `train.dtype` says. Returns {"meta", "modules": {NAME: {"norm", "shape"}}}.
    Raises BadInput as a run would, Diverged when a gradient is not finite.
    """
    if train.init_from is None:
        raise BadInput("train.init_from: missing; gradients are measured of the model it names")
    if count < 1:
        raise BadInput(f"--batches {count}: expected at least 1")
    alone = train.model_copy(update={"only": None, "lora": None})
    plan = prepare(ModelConfig(), optim, alone, tokens)
    model = load_model(train.init_from, "float32", plan.device)
    model.compute_dtype = getattr(torch, train.dtype)
    model.recompute = train.recompute
    sums, shapes, seen = defaultdict[str, float](float), dict[str, list[int]](), 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.dim() > 1)
        if parameter.dim() > 1:
            parameter.register_post_accumulate_grad_hook(_taker(name, sums, shapes))
    rows = repeat(train.micro_batch_sequences, count)
    stream = batches(training_stream(plan.timeline, plan.shards.sets["train"]), 0, rows, 1)
    with deterministic(train):
        for done, batch in enumerate(stream):
            progress(done, count, "gradients: batches")
            seen += _backward(model.train(), batch.to(plan.device), train)
    progress(count, count, "gradients: batches")
    modules = {name: {"norm": math.sqrt(total / count), "shape": shapes[name]} for name, total in sums.items()}
    for name, one in modules.items():
        if not math.isfinite(one["norm"]):
            raise Diverged(f"{name}: its gradient is not finite on the first {count} batches")
    about = {"model": train.init_from, "batches": count, "targets": seen, "dtype": train.dtype}
    return {"meta": {"format": GRADIENTS_FORMAT} | about, "modules": dict(sorted(modules.items()))}


def _taker(name: str, sums: dict[str, float], shapes: dict[str, list[int]]) -> Any:
    def take(parameter: nn.Parameter) -> None:
        gradient = parameter.grad
        assert gradient is not None
        for part in hub_parts(name, tuple(gradient.shape)):
            sums[part.name] += float(torch.linalg.vector_norm(gradient[part.place].float())) ** 2
            shapes[part.name] = list(part.shape)
        parameter.grad = None

    return take


def _backward(model: LanguageModel, batch: Any, train: TrainConfig) -> int:
    """Gradients of a batch's mean cross-entropy; its targets."""
    targets: Tensor = (batch.targets >= 0).sum()
    hidden, _ = model.hidden(batch.tokens, batch.document_ids)
    loss, _, _ = chunked_cross_entropy(
        hidden.flatten(0, 1),
        model.output_weight,
        batch.targets.flatten(),
        chunk=train.loss_chunk_tokens,
        z_loss=0.0,
        normalizer=targets.clamp_min(1),
    )
    loss.backward()
    return int(targets)
