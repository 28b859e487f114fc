"""Muon: momentum, then an orthogonalised update, for every hidden matrix (Trinity Large report, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trine.optim.config import MuonConfig
from trine.optim.newton_schulz import orthogonalize


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters [rows, columns] and stacks [n, rows, columns].

    Every matrix of a stack is orthogonalised on its own; a group with `split` s cuts each matrix into s equal
    blocks of rows first (gate and up of an expert are two matrices). Per matrix:

        M <- momentum * M + G;  U = NS(G + momentum * M)  (nesterov) or NS(M)
        W <- W - lr * weight_decay * W - lr * scale * U

    scale = sqrt(max(1, fan_out / fan_in)) ("spectral", the report's rule) or 0.2 sqrt(max(fan_out, fan_in))
    ("rms", the update's root mean square matched to AdamW's). Momentum is fp32.
    """

    def __init__(self, params: Iterable[Any], config: MuonConfig) -> None:
        defaults = config.model_dump() | {"split": 1}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; one without is left untouched, its momentum too."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        momentum.mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(momentum, alpha=group["momentum"]) if group["nesterov"] else momentum
        split, columns = group["split"], parameter.shape[-1]
        rows = parameter.shape[-2] // split
        update = orthogonalize(direction.reshape(-1, rows, columns), group["ns_steps"]).view_as(parameter)
        scale = learning_rate_scale(rows, columns, group["lr_rule"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * scale)


def learning_rate_scale(fan_out: int, fan_in: int, rule: str) -> float:
    """The factor on the learning rate of one matrix [fan_out, fan_in]."""
    if rule == "spectral":
        return math.sqrt(max(1.0, fan_out / fan_in))
    return 0.2 * math.sqrt(max(fan_out, fan_in))
