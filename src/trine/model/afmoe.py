"""AFMoE: token ids [B, T] enter, fp32 logits [B, T, V] leave (Trinity Large report, section 2)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trine.errors import BadInput
from trine.model.attention import plan_attention
from trine.model.block import Block
from trine.model.config import ModelConfig
from trine.model.norm import RMSNorm
from trine.moe.config import BalanceConfig
from trine.moe.layer import SparseMoE
from trine.moe.stats import RouterStats

if TYPE_CHECKING:
    from trine.model.cache import Cache


class Decoder(nn.Module):
    """The part of the model whose parameters are named `model.*`: embedding, blocks, final norm."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Afmoe(nn.Module):
    """The causal language model. Parameters are uninitialised noise until `init_model` or `load_model`.

    `compute_dtype` is the type of matrix products and of the residual stream; parameters of another type are
    cast at use. `compiled` says that the blocks are. `recompute` trades a second forward of each block in the backward
    pass for its activations. The first `frozen_blocks` blocks, and then the embedding, are not trained and keep nothing
    for the backward pass. `draws` says that blocks draw random numbers (dropout in an adapter).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise BadInput("model.vocab_size is not set; give it, or train from a token folder, which sets it")
        self.config = config
        self.model = Decoder(config, config.vocab_size)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.compute_dtype: torch.dtype | None = None
        self.recompute = False
        self.compiled = False
        self.frozen_blocks = 0
        self.draws = False

    @property
    def output_weight(self) -> Tensor:
        """The head's matrix [V, d]; the embedding's when tied."""
        tied = self.config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    def forward(self, tokens: Tensor, document_ids: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits fp32 [B, T, V] for int64 tokens [B, T].

        `document_ids` [B, T] int: attention never crosses ids, -1 is padding. None: each row is one causal
        sequence, nothing is guessed from special tokens. With `cache`, `tokens` continue what it holds; of ids only
        -1 at the end of a row counts then: rows may continue by different lengths.
        """
        hidden, _ = self.hidden(tokens, document_ids, cache)
        logits = F.linear(hidden, self.output_weight.to(hidden.dtype))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def hidden(
        self, tokens: Tensor, document_ids: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[Tensor, list[RouterStats]]:
        """Final normed states [B, T, D] in the compute type, and each sparse layer's routing statistics."""
        self._check(tokens, document_ids)
        weight = self.model.embed_tokens.weight
        dtype = self.compute_dtype or weight.dtype
        x = F.embedding(tokens, weight)
        if self.compute_dtype is not None:
            x = x.to(torch.promote_types(x.dtype, torch.float32))  # a frozen embedding may be narrower
        if self.config.mup_enabled:
            x = x * math.sqrt(self.config.hidden_size)
        x = x.to(dtype)
        if cache is None:
            plan = plan_attention(self.config, tokens.shape[1], document_ids, tokens.device, dtype)
        else:
            counts = None if document_ids is None else (document_ids >= 0).sum(1).tolist()
            plan = cache.plan(tokens.shape[1], counts, dtype)
        valid = None if document_ids is None else document_ids >= 0
        collected: list[RouterStats] = []
        with_gradient = torch.is_grad_enabled()
        for i, block in enumerate(self.model.layers):
            keeps = with_gradient and i >= self.frozen_blocks
            if self.recompute and keeps:
                x, stats = checkpoint(block, x, plan, valid, None, use_reentrant=False, preserve_rng_state=self.draws)
            else:
                with torch.set_grad_enabled(keeps):
                    x, stats = block(x, plan, valid, cache.layers[i] if cache is not None else None)
            if stats is not None:
                collected.append(stats)
        return self.model.norm(x), collected

    def moe_layers(self) -> dict[int, SparseMoE]:
        """Block index to sparse feed-forward, first to last."""
        mlps = {i: block.mlp for i, block in enumerate(self.model.layers) if isinstance(block, Block)}
        return {i: mlp for i, mlp in mlps.items() if isinstance(mlp, SparseMoE)}

    def update_expert_bias(self, counts: list[Tensor], balance: BalanceConfig) -> None:
        """Move every sparse layer's selection bias once; `counts` [E] per layer, whole global batch."""
        for mlp, counts_E in zip(self.moe_layers().values(), counts, strict=True):
            mlp.update_expert_bias(counts_E, balance)

    def _check(self, tokens: Tensor, document_ids: Tensor | None) -> None:
        if tokens.dim() != 2:
            raise BadInput(f"tokens must be [batch, length], got shape {list(tokens.shape)}")
        if document_ids is not None and document_ids.shape != tokens.shape:
            raise BadInput(
                f"document_ids has shape {list(document_ids.shape)}, tokens {list(tokens.shape)}; they must agree"
            )
