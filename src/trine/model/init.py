"""Initial weights (Trinity Large report, section 2.4), the same bits in memory and streamed to disk.

Each Hub tensor is drawn from a generator keyed by (seed, "init", its Hub name), so neither order nor layout
matters: a stacked expert tensor is filled slice by slice from its experts' own draws.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from trine.model.afmoe import Afmoe
from trine.model.config import ModelConfig
from trine.weights.names import hub_parts

_DEPTH_SCALED = ("post_attention_layernorm.weight", "post_mlp_layernorm.weight")


def keyed_generator(name: str) -> torch.Generator:
    """A generator of its own on the CPU for each `name`."""
    key = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


def init_tensor(name: str, shape: tuple[int, ...], config: ModelConfig, seed: int) -> Tensor:
    """The fp32 initial value of one Hub tensor.

    Matrices: normal with sigma 0.5 / sqrt(hidden_size), truncated at three sigma. Norm gains: 1, and
    1 / sqrt(layers) for the norm after each sublayer. Selection biases: 0.
    """
    if name.endswith(_DEPTH_SCALED):
        return torch.full(shape, 1 / math.sqrt(config.num_hidden_layers))
    if name.endswith("expert_bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    sigma = 0.5 / math.sqrt(config.hidden_size)
    empty, generator = torch.empty(shape), keyed_generator(f"{seed}/init/{name}")
    return nn.init.trunc_normal_(empty, std=sigma, a=-3 * sigma, b=3 * sigma, generator=generator)


@torch.no_grad()
def init_model(model: Afmoe, seed: int) -> None:
    """Fill every parameter of `model` in place; biases and balancing state start at 0."""
    for name, parameter in model.named_parameters():
        for part in hub_parts(name, tuple(parameter.shape)):
            parameter[part.place].copy_(init_tensor(part.name, part.shape, model.config, seed))
    for moe in model.moe_layers().values():
        moe.expert_bias.zero_()
        moe.bias_momentum.zero_()
