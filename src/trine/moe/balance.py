"""Moving the selection bias so that experts are equally busy. One call per optimizer step and layer.

`counts` is the number of tokens each expert received over the whole global batch. Both updates depend on
ratios of counts only, so counting everything twice would change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trine.moe.config import BalanceConfig


@torch.no_grad()
def smebu_update(bias_E: Tensor, momentum_E: Tensor, counts_E: Tensor, rate: float, beta: float, kappa: float) -> None:
    """SMEBU in place, fp32 (Trinity Large report, equations 23-28).

    violation = (mean - n) / mean; delta = rate * tanh(kappa * violation), recentred to mean 0;
    momentum = beta * momentum + (1 - beta) * delta; bias += momentum. The tanh bounds the update, not the
    bias. A batch without tokens changes nothing.
    """
    counts = counts_E.to(bias_E)
    mean = counts.mean()
    violation = torch.where(mean > 0, (mean - counts) / mean.clamp_min(1e-30), torch.zeros_like(counts))
    delta = rate * torch.tanh(kappa * violation)
    delta -= delta.mean()
    momentum_E.mul_(beta).add_(delta, alpha=1 - beta)
    bias_E.add_(momentum_E)


@torch.no_grad()
def sign_update(bias_E: Tensor, counts_E: Tensor, rate: float) -> None:
    """The recentred sign update in place (section 2.3): bias += rate * sign(mean - n), then minus its mean."""
    counts = counts_E.to(bias_E)
    bias_E.add_(torch.sign(counts.mean() - counts), alpha=rate)
    bias_E.sub_(bias_E.mean())


def update_bias(bias_E: Tensor, momentum_E: Tensor, counts_E: Tensor, config: BalanceConfig) -> None:
    """Apply the configured update in place."""
    match config.update:
        case "smebu":
            smebu_update(bias_E, momentum_E, counts_E, config.rate, config.momentum, config.tanh_scale)
        case "sign":
            sign_update(bias_E, counts_E, config.rate)
        case "none":
            pass
