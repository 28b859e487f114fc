"""Sigmoid routing with a selection bias (Trinity Large report, section 2.3, equations 15-20)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    """Decisions for N tokens over E experts."""

    scores_NE: Tensor
    """Sigmoid scores, fp32."""
    experts_NK: Tensor
    """Selected experts, int64."""
    weights_NK: Tensor
    """Gate weights: the selected scores normalised to sum to the route scale, fp32."""


class Router(nn.Module):
    """Scores every expert for every token and selects K of them.

    The bias enters the selection only, never the gate weight. The matrix product and the sigmoid are fp32
    whatever the compute type: near-ties decide which expert a token sees.
    """

    def __init__(self, hidden_size: int, num_experts: int, top_k: int, route_scale: float) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, num_experts, bias=False)
        self.top_k = top_k
        self.route_scale = route_scale

    def forward(self, x_ND: Tensor, bias_E: Tensor) -> Routing:
        wide = torch.promote_types(x_ND.dtype, torch.float32)
        logits = nn.functional.linear(x_ND.to(wide), self.gate.weight.to(wide))
        scores_NE = logits.sigmoid()
        experts_NK = (scores_NE.detach() + bias_E).topk(self.top_k, dim=-1).indices
        chosen_NK = scores_NE.gather(-1, experts_NK)
        weights_NK = chosen_NK / (chosen_NK.sum(-1, keepdim=True) + 1e-20) * self.route_scale
        return Routing(scores_NE, experts_NK, weights_NK)
