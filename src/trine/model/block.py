"""One AFMoE block: attention, then feed-forward, each between two norms (depth-scaled sandwich norm)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from trine.model.attention import Attention, AttentionPlan
from trine.model.config import ModelConfig
from trine.model.norm import RMSNorm
from trine.moe.layer import SparseMoE, SwiGLU
from trine.moe.stats import RouterStats

if TYPE_CHECKING:
    from trine.model.cache import LayerCache


class Block(nn.Module):
    """y = x + norm2(M(norm1(x))) for attention, then for the feed-forward (Trinity Large report, section 2.1).

    Without `sandwich_norm` norm2 is the identity. The first `num_dense_layers` blocks have a dense feed-forward,
    the others a sparse one.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps)
        self.self_attn = Attention(config, config.layers()[layer])
        self.post_attention_layernorm = RMSNorm(size, eps) if config.sandwich_norm else nn.Identity()
        self.pre_mlp_layernorm = RMSNorm(size, eps)
        self.mlp: SwiGLU | SparseMoE
        if layer < config.num_dense_layers:
            self.mlp = SwiGLU(size, config.intermediate_size)
        else:
            self.mlp = SparseMoE(
                size,
                config.moe_intermediate_size,
                config.num_experts,
                config.num_experts_per_tok,
                config.num_shared_experts,
                config.route_scale,
            )
        self.post_mlp_layernorm = RMSNorm(size, eps) if config.sandwich_norm else nn.Identity()

    def forward(
        self, x_BTD: Tensor, plan: AttentionPlan, valid_BT: Tensor | None, cache: LayerCache | None
    ) -> tuple[Tensor, RouterStats | None]:
        """Output [B, T, D] and, for a sparse block without a cache, its routing statistics."""
        attended = self.self_attn(self.input_layernorm(x_BTD), plan, cache)
        x_BTD = x_BTD + self.post_attention_layernorm(attended)
        normed, stats = self.pre_mlp_layernorm(x_BTD), None
        if isinstance(self.mlp, SparseMoE) and cache is not None:
            out = self.mlp.infer(normed)
        elif isinstance(self.mlp, SparseMoE):
            out, stats = self.mlp(normed, valid_BT, with_loss=self.training)
        else:
            out = self.mlp(normed)
        return x_BTD + self.post_mlp_layernorm(out), stats
