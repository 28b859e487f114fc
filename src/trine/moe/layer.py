"""The sparse feed-forward: shared expert + routed experts (Trinity Large report, section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trine.moe.balance import update_bias
from trine.moe.config import BalanceConfig
from trine.moe.experts import FEW_TOKENS, Experts
from trine.moe.linear import project
from trine.moe.router import Router
from trine.moe.stats import RouterStats, router_stats


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), no biases; weights are cast to x's dtype."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project(x, self.gate_proj), project(x, self.up_proj)
        return project(F.silu(gate) * up, self.down_proj)


class SparseMoE(nn.Module):
    """shared(x) + sum over the selected experts of gate weight times expert(x)."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        num_experts: int,
        top_k: int,
        num_shared: int,
        route_scale: float,
    ) -> None:
        super().__init__()
        self.router = Router(hidden_size, num_experts, top_k, route_scale)
        self.shared_experts = SwiGLU(hidden_size, intermediate_size * num_shared)
        self.experts = Experts(num_experts, hidden_size, intermediate_size)
        self.expert_bias: Tensor
        self.bias_momentum: Tensor
        self.register_buffer("expert_bias", torch.zeros(num_experts, dtype=torch.float32))
        self.register_buffer("bias_momentum", torch.zeros(num_experts, dtype=torch.float32))

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None, with_loss: bool) -> tuple[Tensor, RouterStats]:
        """Output [B, T, D] and the statistics of the tokens `valid_BT` marks (None: all)."""
        rows = x_BTD.shape[0]
        x_ND = x_BTD.flatten(0, 1)
        routing = self.router(x_ND, self.expert_bias)
        out = self.shared_experts(x_ND) + self.experts(x_ND, routing.experts_NK, routing.weights_NK)
        valid_N = None if valid_BT is None else valid_BT.flatten()
        stats = router_stats(routing.scores_NE, routing.experts_NK, rows, valid_N, with_loss)
        return out.view_as(x_BTD), stats

    def infer(self, x_BTD: Tensor) -> Tensor:
        """The output alone."""
        x_ND = x_BTD.flatten(0, 1)
        routing = self.router(x_ND, self.expert_bias)
        experts = self.experts.few if x_ND.shape[0] <= FEW_TOKENS else self.experts
        return (self.shared_experts(x_ND) + experts(x_ND, routing.experts_NK, routing.weights_NK)).view_as(x_BTD)

    def update_expert_bias(self, counts_E: Tensor, config: BalanceConfig) -> None:
        """Move the selection bias once, from the counts of the whole global batch."""
        update_bias(self.expert_bias, self.bias_momentum, counts_E, config)
