"""One optimizer step: micro-batches in, updated parameters and what happened out. No files, no ranks.

Gradients accumulate over the micro-batches with one normaliser for the whole global batch, so any split
into micro-batches computes the same sum; expert counts accumulate the same way and the selection bias
moves once, after the last micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from trine.data.loader import Batch
from trine.errors import Diverged
from trine.moe.config import BalanceConfig
from trine.moe.stats import LayerHealth, StepStats
from trine.optim.groups import clip_gradients
from trine.train.config import TrainConfig
from trine.train.loss import chunked_cross_entropy
from trine.train.meters import StepMeter

if TYPE_CHECKING:
    from trine.model.hf import LanguageModel
    from trine.optim.groups import Optimizers


@dataclass(frozen=True)
class StepResult:
    """Means over the global batch, in nats per predicted token; `grad_norm` is taken before clipping."""

    loss: float
    """Cross-entropy alone."""
    balance_loss: float
    """Sequence-wise balance loss, mean over layers, before its coefficient."""
    z_loss: float
    """Mean squared log-normaliser, before its coefficient."""
    grad_norm: float
    batch_het: float
    """Largest less mean loss of the micro-batches (BatchHet of the Trinity Large report, section 4)."""
    router: list[LayerHealth]
    bias_change: tuple[float, ...] = ()
    """Root mean square, over the experts of each sparse layer, of the selection bias's move in this step."""


def train_step(
    model: LanguageModel,
    optimizers: Optimizers,
    micro_batches: Sequence[Batch],
    config: TrainConfig,
    clip_norm: float | None,
    lr_factor: float,
    meter: StepMeter | None = None,
) -> StepResult:
    """Forward, backward, clip, update, balance; `meter` books the time of each.

    Raises Diverged before anything is updated when the loss or the gradient norm is not finite.
    """
    counts = [int((batch.targets >= 0).sum()) for batch in micro_batches]
    targets = sum(counts)
    rows = sum(batch.tokens.shape[0] for batch in micro_batches)
    stats, losses = StepStats(), list[float]()
    meter = meter or StepMeter(micro_batches[0].tokens.device)
    ce_sum, z_sum, balance_sum = 0.0, 0.0, 0.0
    optimizers.zero_grad()
    for batch, count in zip(micro_batches, counts, strict=True):
        hidden, layer_stats = model.hidden(batch.tokens, batch.document_ids)
        loss, ce, z = chunked_cross_entropy(
            hidden.flatten(0, 1),
            model.output_weight,
            batch.targets.flatten(),
            chunk=config.loss_chunk_tokens,
            z_loss=config.z_loss,
            normalizer=float(max(targets, 1)),
            compiled=model.compiled,
        )
        share = batch.tokens.shape[0] / rows
        if layer_stats and config.balance.sequence_loss:
            balance = torch.stack([one.balance_loss for one in layer_stats])
            loss = loss + config.balance.sequence_loss * share * balance.sum()
            balance_sum += share * float(balance.detach().mean())
        meter.lap("forward")
        loss.backward()
        meter.lap("backward")
        ce_sum += float(ce)
        losses.append(float(ce) / max(count, 1))
        z_sum += float(z)
        stats.add(layer_stats)
    grad_norm = float(clip_gradients(model.parameters(), clip_norm))
    result = StepResult(
        loss=ce_sum / max(targets, 1),
        balance_loss=balance_sum,
        z_loss=z_sum / max(targets, 1),
        grad_norm=grad_norm,
        batch_het=max(losses) - sum(losses) / len(losses),
        router=_health(model, stats),
    )
    if not (math.isfinite(result.loss) and math.isfinite(grad_norm)):
        raise Diverged(f"loss {result.loss}, gradient norm {grad_norm}: not finite, nothing was updated")
    optimizers.step(lr_factor)
    change = _move_biases(model, stats, config.balance)
    meter.lap("optimizer")
    return replace(result, bias_change=change)


def _move_biases(model: LanguageModel, stats: StepStats, balance: BalanceConfig) -> tuple[float, ...]:
    layers = model.moe_layers().values()
    before = [mlp.expert_bias.clone() for mlp in layers]
    model.update_expert_bias(stats.counts, balance)
    return tuple(float((mlp.expert_bias - old).square().mean().sqrt()) for mlp, old in zip(layers, before, strict=True))


def _health(model: LanguageModel, stats: StepStats) -> list[LayerHealth]:
    moe = model.moe_layers()
    return stats.health(list(moe), [mlp.expert_bias for mlp in moe.values()])
