"""How many parameters a model has, and how many a token passes through."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trine.model.afmoe import Afmoe
from trine.model.config import ModelConfig
from trine.weights.names import is_stacked


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters, and the active ones: those a single token's forward pass uses."""

    total: int
    active: int
    """Blocks, head and embedding table; experts counted as top-k of all."""
    active_blocks: int
    """Blocks alone."""


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Count on the meta device: no memory is used, whatever the size. `vocab_size` must be set."""
    with torch.device("meta"):
        model = Afmoe(config)
    total = active = outside = 0
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        total += size
        used = size * config.num_experts_per_tok // config.num_experts if is_stacked(name) else size
        active += used
        if not name.startswith("model.layers."):
            outside += used
    return ParameterCounts(total=total, active=active, active_blocks=active - outside)
