"""The AFMoE model's config and the three Trinity presets. Field names are those of the Hub's config.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from trine.config.base import Count, Frozen
from trine.errors import nearest

LayerType = Literal["sliding_attention", "full_attention"]

_TRINITY = {"vocab_size": 200192, "head_dim": 128, "num_shared_experts": 1, "max_position_embeddings": 131072}
PRESETS: dict[str, dict[str, Any]] = {
    "nano": _TRINITY
    | {"num_hidden_layers": 56, "num_dense_layers": 2, "hidden_size": 1024, "intermediate_size": 3072}
    | {"num_attention_heads": 8, "num_key_value_heads": 2, "sliding_window": 2048}
    | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 256, "route_scale": 2.826},
    "mini": _TRINITY
    | {"num_hidden_layers": 32, "num_dense_layers": 2, "hidden_size": 2048, "intermediate_size": 6144}
    | {"num_attention_heads": 32, "num_key_value_heads": 4, "sliding_window": 2048}
    | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1024, "route_scale": 2.826},
    "large": _TRINITY
    | {"num_hidden_layers": 60, "num_dense_layers": 6, "hidden_size": 3072, "intermediate_size": 12288}
    | {"num_attention_heads": 48, "num_key_value_heads": 8, "sliding_window": 4096}
    | {"num_experts": 256, "num_experts_per_tok": 4, "moe_intermediate_size": 3072, "route_scale": 2.448},
}
"""Shapes of the Trinity Large report, table 1. The Large value of max_position_embeddings is not reported."""


ABLATIONS = ("sandwich_norm", "attention_gate", "global_rope")
"""Fields that take a part of the architecture away; their defaults are the report's."""


def padded_vocabulary(tokens: int) -> int:
    """Rows of the embedding for a tokenizer of so many tokens: the next multiple of 64."""
    return -(-tokens // 64) * 64


class ModelConfig(Frozen):
    """Shape of an AFMoE model (Trinity Large report, section 2). Defaults are a small model for one machine."""

    preset: Literal["nano", "mini", "large"] | None = None
    """Start from a Trinity shape; every other key given here replaces the preset's value."""
    vocab_size: Count | None = Field(default=None, ge=2)
    """Rows of the embedding. Default: the tokenizer's size rounded up to a multiple of 64."""
    hidden_size: int = Field(default=256, ge=2)
    intermediate_size: int = Field(default=768, ge=1)
    """Width of the dense feed-forward of the first `num_dense_layers` blocks."""
    moe_intermediate_size: int = Field(default=128, ge=1)
    """Width of one routed expert; the shared expert is `num_shared_experts` times as wide."""
    num_hidden_layers: int = Field(default=8, ge=1)
    num_dense_layers: int = Field(default=1, ge=0)
    num_attention_heads: int = Field(default=4, ge=1)
    num_key_value_heads: int = Field(default=2, ge=1)
    head_dim: int = Field(default=64, ge=2)
    num_experts: int = Field(default=16, ge=1)
    num_experts_per_tok: int = Field(default=4, ge=1)
    num_shared_experts: int = Field(default=1, ge=1)
    route_scale: float = Field(default=2.0, gt=0)
    """Sum of a token's gate weights. Trinity's values lie at about the square root of the experts per token."""
    sliding_window: int = Field(default=256, ge=1)
    """Tokens a local layer sees, the current one included."""
    global_attn_every_n_layers: int = Field(default=4, ge=1)
    """Layer i (from 0) is global when (i + 1) is a multiple of this; `layer_types` overrides it."""
    layer_types: tuple[LayerType, ...] | None = None
    """One entry per layer. Default: from `global_attn_every_n_layers`."""
    rope_theta: float = Field(default=10000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    mup_enabled: bool = True
    """Multiply embeddings by the square root of `hidden_size`."""
    tie_word_embeddings: bool = False
    sandwich_norm: bool = True
    """Depth-scaled sandwich norm: y = x + norm2(M(norm1(x))). false: y = x + M(norm1(x)) (pre-norm)."""
    attention_gate: bool = True
    """Multiply the heads' output by sigmoid(W_G x) before the output projection."""
    global_rope: bool = False
    """true: rotary positions on global layers as well, which have none in the report (NoPE)."""
    max_position_embeddings: Count = Field(default=131072, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("preset"), str):
            if data["preset"] not in PRESETS:
                close = nearest(data["preset"], PRESETS)
                raise ValueError(f"preset '{data['preset']}' is not one of {', '.join(PRESETS)}{close}")
            return PRESETS[data["preset"]] | data
        return data

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embeddings need an even one")
        if self.num_dense_layers > self.num_hidden_layers:
            raise ValueError(
                f"num_dense_layers {self.num_dense_layers} exceeds num_hidden_layers {self.num_hidden_layers}"
            )
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} exceeds num_experts {self.num_experts}")
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries, num_hidden_layers is {self.num_hidden_layers}"
            )
        return self

    def ablations(self) -> tuple[str, ...]:
        """What differs from the report's architecture, as `attention_gate: false`; transformers has no such model."""
        default = type(self).model_fields
        values = {name: getattr(self, name) for name in ABLATIONS}
        return tuple(f"{name}: {value}".lower() for name, value in values.items() if value != default[name].default)

    def layers(self) -> tuple[LayerType, ...]:
        """The attention kind of each layer, first to last."""
        if self.layer_types is not None:
            return self.layer_types
        every = self.global_attn_every_n_layers
        return tuple(
            "sliding_attention" if (i + 1) % every else "full_attention" for i in range(self.num_hidden_layers)
        )
