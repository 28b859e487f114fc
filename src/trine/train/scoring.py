"""What a model reaches on the held-out sets of a run: bits per byte, and how many questions it answers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trine.data.loader import eval_batches
from trine.errors import BadInput
from trine.evaluate.bits import bits_per_byte
from trine.evaluate.choices import choice_accuracy
from trine.model.config import ModelConfig
from trine.model.hf import LanguageModel, load_model
from trine.optim.config import OptimConfig
from trine.train.config import TrainConfig
from trine.train.fast import uncompiled
from trine.train.setup import Plan, deterministic, prepare


def score(model: LanguageModel, plan: Plan, train: TrainConfig) -> dict[str, Any]:
    """The scores of `model` as a step's record has them, in sequences as long and masked as `train` says."""
    model.eval()
    with uncompiled():
        bits = {name: _bits(model, plan, train, name) for name in plan.eval_sets}
        asked = {
            name: asdict(choice_accuracy(model, some, plan.shards.token_bytes, train.loss_chunk_tokens))
            for name, some in plan.questions.items()
        }
    model.train()
    return {"bits_per_byte": bits} | plan.answers_only | ({"choices": asked} if asked else {})


def _bits(model: LanguageModel, plan: Plan, train: TrainConfig, name: str) -> float:
    rows = eval_batches(
        plan.shards.sets[name],
        train.sequence_length,
        train.micro_batch_sequences,
        train.eval.max_tokens,
        train.document_mask,
    )
    moved = (batch.to(plan.device) for batch in rows)
    result = bits_per_byte(model, moved, plan.shards.token_bytes.to(plan.device), train.loss_chunk_tokens)
    return result.bits_per_byte


def score_start(optim: OptimConfig, train: TrainConfig, tokens: Path) -> dict[str, Any]:
    """The scores of the model in `train.init_from` before a step of the run. Raises BadInput as the run would."""
    if train.init_from is None:
        raise BadInput("train.init_from: missing; the model it names is scored")
    plan = prepare(ModelConfig(), optim, train.model_copy(update={"only": None, "lora": None}), tokens)
    model = load_model(train.init_from, "float32", plan.device)
    model.compute_dtype = getattr(torch, train.dtype)
    with deterministic(train):
        return score(model, plan, plan.train)
