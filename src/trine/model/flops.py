"""How many parameters a model has, how many a token passes through, and the arithmetic that takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trine.model.afmoe import Afmoe
from trine.model.blocks import blocks, frozen_blocks
from trine.model.config import ModelConfig
from trine.model.hf import LanguageModel
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


def forward_flops(model: LanguageModel, length: int) -> float:
    """Floating-point operations of the forward pass per token of a sequence of `length` tokens.

    Two for each weight of a matrix the token passes (top-k experts, router, head; an embedding is a lookup) and
    4 * heads * head_dim for each key a query sees: min(t, window) for token t = 1 ... length in a layer with a
    window, t in another. Norms, activations and document boundaries are left out. `model` may be on the meta device.
    """
    head = model.output_weight.numel()
    return 2 * head + sum(2 * _weights(model, block) + pairs for block, pairs in _work(model, length))


def training_flops(model: LanguageModel, length: int) -> float:
    """Per token forward and backward, which makes two products for each of the forward's.

    Of a model with frozen parameters, none for their gradients, and nothing in the blocks that no gradient has to pass.
    What recomputation repeats is not counted, so that MFU tells useful work.
    """
    head, frozen = model.output_weight, frozen_blocks(model)
    trained = head.numel() if head.requires_grad else 0
    below = any(p.requires_grad for p in model.parameters() if p is not head)
    total = 2.0 * (head.numel() * (1 + below) + trained)
    for i, (block, pairs) in enumerate(_work(model, length)):
        weights, passed = _weights(model, block), i >= frozen
        total += 2 * (weights * (1 + passed) + _weights(model, block, trained=True)) + pairs * (1 + 2 * passed)
    return total


def _work(model: LanguageModel, length: int) -> list[tuple[nn.Module, float]]:
    """Each block and the floating-point operations per token of its attention's products in the forward pass."""
    heads = model.config.num_attention_heads
    head_dim = getattr(model.config, "head_dim", None) or model.config.hidden_size // heads
    found = []
    for block, window in zip(blocks(model), _windows(model), strict=True):
        seen = min(length, window or length)
        pairs = (seen * (seen + 1) / 2 + (length - seen) * seen) / length
        found.append((block, 4 * heads * head_dim * pairs))
    return found


def _weights(model: LanguageModel, block: nn.Module, trained: bool = False) -> float:
    """Weights of a block's matrices that a token passes; of those alone that are trained."""
    total = 0.0
    for name, parameter in block.named_parameters():
        if parameter.dim() > 1 and (parameter.requires_grad or not trained):
            total += parameter.numel() * _used_share(model, name)
    return total


def _used_share(model: LanguageModel, name: str) -> float:
    if isinstance(model, Afmoe) and name.startswith("mlp.experts."):
        return model.config.num_experts_per_tok / model.config.num_experts
    return 1.0


def _windows(model: LanguageModel) -> list[int | None]:
    """The attention window of each layer; None sees everything before."""
    config: Any = model.config
    window = getattr(config, "sliding_window", None)
    kinds = config.layers() if isinstance(model, Afmoe) else getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]
