"""What a forward pass reports about routing, and the health figures made of it.

Statistics are values handed back by the forward pass and added up by the caller: nothing is counted in
buffers, so recomputing a block in the backward pass cannot count twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class RouterStats(NamedTuple):
    """One layer's statistics over the valid (not padding) tokens of one forward pass."""

    counts_E: Tensor
    """Tokens routed to each expert, int64."""
    entropy_sum: Tensor
    """Sum over tokens of the entropy of the normalised scores, nats, fp32 scalar."""
    tokens: Tensor
    """Valid tokens, int64 scalar."""
    balance_loss: Tensor
    """Sequence-wise balance loss before its coefficient, fp32 scalar with gradient."""


@dataclass(frozen=True)
class LayerHealth:
    """Router health of one layer over one optimizer step."""

    layer: int
    max_vio: float
    """(max load - mean load) / mean load: 0 is perfect balance."""
    entropy: float
    """Mean entropy of the routing scores in nats; log(E) is uniform."""
    dead: int
    """Experts that received no token."""
    bias_spread: float
    """Largest minus smallest selection bias."""


def router_stats(
    scores_NE: Tensor, experts_NK: Tensor, rows: int, valid_N: Tensor | None, with_loss: bool
) -> RouterStats:
    """Statistics of `rows` sequences whose N tokens lie row after row; `valid_N` marks tokens that count.

    The balance loss is, per sequence of T valid tokens, sum_i f_i P_i with
    f_i = E / (K T) * #{t: i selected} and P_i = mean_t s_ti / sum_j s_tj (Trinity Large report, section
    2.3), averaged over the rows that have tokens.
    """
    tokens, experts = scores_NE.shape
    k = experts_NK.shape[1]
    selected_NE = torch.zeros_like(scores_NE).scatter_(1, experts_NK, 1.0)
    share_NE = scores_NE / scores_NE.sum(-1, keepdim=True)
    if valid_N is not None:
        weight = valid_N.to(scores_NE).unsqueeze(1)
        selected_NE, share_NE = selected_NE * weight, share_NE * weight
        length_R = valid_N.view(rows, -1).sum(1).to(scores_NE)
    else:
        length_R = scores_NE.new_full((rows,), tokens // rows)
    detached = share_NE.detach()
    entropy = -torch.special.xlogy(detached, detached).sum()
    loss = scores_NE.new_zeros(())
    if with_loss:
        divisor = length_R.clamp_min(1).unsqueeze(1)
        f_RE = selected_NE.view(rows, -1, experts).sum(1) * experts / (k * divisor)
        p_RE = share_NE.view(rows, -1, experts).sum(1) / divisor
        loss = (f_RE * p_RE).sum() / (length_R > 0).sum().clamp_min(1)
    counts = selected_NE.view(rows, -1, experts).sum(1).sum(0).round().long()
    return RouterStats(counts, entropy, length_R.sum().long(), loss)


class StepStats:
    """The sum of a global batch's statistics, layer by layer."""

    def __init__(self) -> None:
        self.counts: list[Tensor] = []
        self._entropy: list[Tensor] = []
        self._tokens: Tensor | None = None

    def add(self, layers: list[RouterStats]) -> None:
        """Add one micro-batch."""
        if not self.counts:
            self.counts = [one.counts_E.clone() for one in layers]
            self._entropy = [one.entropy_sum.clone() for one in layers]
            self._tokens = layers[0].tokens.clone() if layers else None
            return
        for total, entropy, one in zip(self.counts, self._entropy, layers, strict=True):
            total += one.counts_E
            entropy += one.entropy_sum
        if self._tokens is not None:
            self._tokens += layers[0].tokens

    def figures(self, biases: list[Tensor]) -> list[list[Tensor]]:
        """Of each MoE layer max_vio, entropy, dead and bias_spread, scalars on its device; see LayerHealth.

        `biases` are the layers' selection biases.
        """
        if self._tokens is None:
            return []
        tokens = self._tokens.clamp_min(1)
        return [
            [max_violation(counts), entropy.double() / tokens, (counts == 0).sum(), bias.max() - bias.min()]
            for counts, entropy, bias in zip(self.counts, self._entropy, biases, strict=True)
        ]


def layer_health(layers: list[int], figures: list[list[float]]) -> list[LayerHealth]:
    """`StepStats.figures` of the layers whose block indices are `layers`."""
    return [
        LayerHealth(layer, max_vio, entropy, int(dead), spread)
        for layer, (max_vio, entropy, dead, spread) in zip(layers, figures, strict=True)
    ]


def max_violation(counts_E: Tensor) -> Tensor:
    """MaxVio = (max_i n_i - mean n) / mean n (Trinity Large report, section 2.3), fp64 scalar; 0 for no tokens."""
    counts = counts_E.double()
    mean = counts.mean()
    return torch.where(mean > 0, (counts.max() - mean) / mean, 0.0)
