"""Small models and inputs shared by the tests of the model room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trine.model.afmoe import Afmoe
from trine.model.config import ModelConfig
from trine.model.init import init_model

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_dense_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "max_position_embeddings": 128,
}


def small_config(**changes: Any) -> ModelConfig:
    return ModelConfig(**(SMALL | changes))


def small_model(config: ModelConfig | None = None, seed: int = 0, bias: float = 0.0) -> Afmoe:
    """An initialised model; `bias` spreads the selection biases, norm gains are moved off their initial values."""
    model = Afmoe(config or small_config())
    init_model(model, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
        for moe in model.moe_layers().values():
            moe.expert_bias.copy_(bias * torch.randn(moe.expert_bias.shape, generator=generator))
    return model


def random_tokens(rows: int, length: int, vocabulary: int = 97, seed: int = 0) -> Tensor:
    return torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(seed))


def in_transformers(model: Afmoe, folder: Path) -> Any:
    """The same weights in transformers' own implementation, fp32."""
    from transformers import AfmoeForCausalLM

    from trine.model.hf import save_model

    save_model(model, folder)
    peer = AfmoeForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, experts_implementation="eager"
    )
    return peer.train()
