"""A linear layer in the type of its input, with the low-rank change that an adapter may have put around it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

ADAPTER = "default"
"""peft's name for an adapter that is given none."""


def project(x: Tensor, layer: nn.Module) -> Tensor:
    """x [..., in] to [..., out] in x's type: W x, or W x + s B A dropout(x) through peft's layer around W."""
    held: Any = layer
    out = F.linear(x, held.weight.to(x.dtype))
    if isinstance(layer, nn.Linear):
        return out
    low = F.linear(held.lora_dropout[ADAPTER](x), held.lora_A[ADAPTER].weight.to(x.dtype))
    return out + F.linear(low, held.lora_B[ADAPTER].weight.to(x.dtype)) * held.scaling[ADAPTER]
