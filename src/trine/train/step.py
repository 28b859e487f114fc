"""One optimizer step: micro-batches in, updated parameters and what happened out. No files, no ranks.

Gradients accumulate over the micro-batches with one normaliser for the whole global batch, so any split
into micro-batches computes the same sum; expert counts accumulate the same way and the selection bias
moves once, after the last micro-batch.

The host waits for the device once in a step: for what it reports, right before the update, so that a loss or gradient
norm that is not finite updates nothing. Until then every figure stays on the device; the update is only queued.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trine.data.loader import Batch
from trine.errors import Diverged
from trine.moe.stats import LayerHealth, StepStats, layer_health
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
    """Largest less mean loss of the micro-batches with targets (BatchHet of the Trinity Large report, section 4)."""
    router: list[LayerHealth]
    targets: int
    """Predicted tokens of the global batch."""
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
    meter = meter or StepMeter(micro_batches[0].tokens.device)
    optimizers.zero_grad()
    sums, stats = _passes(model, micro_batches, config, meter)
    grad_norm = clip_gradients(model.parameters(), clip_norm)
    moe = model.moe_layers()
    health = stats.figures([mlp.expert_bias for mlp in moe.values()])
    kept = [(buffer, buffer.clone()) for mlp in moe.values() for buffer in (mlp.expert_bias, mlp.bias_momentum)]
    model.update_expert_bias(stats.counts, config.balance)
    moves = [(bias - old).square().mean().sqrt() for bias, old in kept[::2]]
    result = _result(micro_batches, list(moe), *_on_host(sums, health, [[grad_norm, *moves]]))
    if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
        for buffer, old in kept:
            buffer.copy_(old)
        raise Diverged(f"loss {result.loss}, gradient norm {result.grad_norm}: not finite, nothing was updated")
    optimizers.step(lr_factor)
    meter.lap("optimizer")
    return result


def _passes(
    model: LanguageModel, micro_batches: Sequence[Batch], config: TrainConfig, meter: StepMeter
) -> tuple[list[list[Tensor]], StepStats]:
    """Forward and backward. Of each micro-batch targets, sums of cross-entropy and z, mean balance loss; routing."""
    counts = [(batch.targets >= 0).sum() for batch in micro_batches]
    targets = torch.stack(counts).sum().clamp_min(1)
    stats, sums = StepStats(), list[list[Tensor]]()
    for batch, count, share in zip(micro_batches, counts, _shares(micro_batches), strict=True):
        hidden, layer_stats = model.hidden(batch.tokens, batch.document_ids)
        loss, ce, z = chunked_cross_entropy(
            hidden.flatten(0, 1),
            model.output_weight,
            batch.targets.flatten(),
            chunk=config.loss_chunk_tokens,
            z_loss=config.z_loss,
            normalizer=targets,
            compiled=model.compiled,
        )
        mean_balance = torch.zeros_like(ce)
        if layer_stats and config.balance.sequence_loss:
            balance = torch.stack([one.balance_loss for one in layer_stats])
            loss = loss + config.balance.sequence_loss * share * balance.sum()
            mean_balance = balance.detach().mean()
        meter.lap("forward")
        loss.backward()
        meter.lap("backward")
        sums.append([count, ce, z, mean_balance])
        stats.add(layer_stats)
    return sums, stats


def _shares(micro_batches: Sequence[Batch]) -> list[float]:
    """Each micro-batch's share of the rows."""
    rows = sum(batch.tokens.shape[0] for batch in micro_batches)
    return [batch.tokens.shape[0] / rows for batch in micro_batches]


def _on_host(*tables: list[list[Tensor]]) -> list[list[list[float]]]:
    """Tables of scalars as numbers, by one transfer."""
    flat = [one.double() for table in tables for row in table for one in row]
    numbers = iter(torch.stack(flat).tolist())
    return [[[next(numbers) for _ in row] for row in table] for table in tables]


def _result(
    micro_batches: Sequence[Batch],
    layers: list[int],
    sums: list[list[float]],
    health: list[list[float]],
    rest: list[list[float]],
) -> StepResult:
    counts, ces, zs, balances = zip(*sums, strict=True)
    targets = max(sum(counts), 1)
    losses = [ce / count for ce, count in zip(ces, counts, strict=True) if count] or [0.0]
    (grad_norm, *moves), *_ = rest
    return StepResult(
        loss=sum(ces) / targets,
        balance_loss=sum(share * one for share, one in zip(_shares(micro_batches), balances, strict=True)),
        z_loss=sum(zs) / targets,
        grad_norm=grad_norm,
        batch_het=max(losses) - sum(losses) / len(losses),
        router=layer_health(layers, health),
        targets=int(sum(counts)),
        bias_change=tuple(moves),
    )
