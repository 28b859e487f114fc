"""Muon: momentum, then an orthogonalised update, for every hidden matrix (Trinity Large report, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from trine.optim.config import MuonConfig
from trine.optim.native import Update, applies, update
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
            stacks = [self._stack(p, group) for p in group["params"] if p.grad is not None]
            native = [one for one in stacks if applies(one)]
            update(native, beta=group["momentum"], nesterov=group["nesterov"], steps=group["ns_steps"])
            for one in stacks:
                if not applies(one):
                    _update(one, group)

    def _stack(self, parameter: Tensor, group: dict[str, Any]) -> Update:
        state, gradient, split = self.state[parameter], parameter.grad, group["split"]
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        rows, columns = parameter.shape[-2] // split, parameter.shape[-1]
        scale = group["lr"] * learning_rate_scale(rows, columns, group["lr_rule"])
        decay = 1 - group["lr"] * group["weight_decay"]
        return Update(parameter, state["momentum"], gradient, rows, columns, decay, scale)


def _update(one: Update, group: dict[str, Any]) -> None:
    one.momentum.mul_(group["momentum"]).add_(one.gradient)
    direction = one.gradient.add(one.momentum, alpha=group["momentum"]) if group["nesterov"] else one.momentum
    step = orthogonalize(direction.reshape(-1, one.rows, one.columns), group["ns_steps"]).view_as(one.weight)
    one.weight.mul_(one.decay).add_(step, alpha=-one.scale)


def learning_rate_scale(fan_out: int, fan_in: int, rule: str) -> float:
    """The factor on the learning rate of one matrix [fan_out, fan_in]."""
    if rule == "spectral":
        return math.sqrt(max(1.0, fan_out / fan_in))
    return 0.2 * math.sqrt(max(fan_out, fan_in))
