"""Gated attention, local with rotary positions or global without (Trinity Large report, section 2.1).

Masks are made once per forward pass and shared by the layers of a kind; the kernels of `native.py` need none. A local
layer on a long sequence works in blocks of one window: each block of queries sees its own and the previous block of
keys, so work grows with T * window instead of T^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trine.model.config import LayerType, ModelConfig
from trine.model.flash import flash_attention
from trine.model.flex import BlockMask, block_mask, flex, uses_flex
from trine.model.native import native_attention, native_attention_applies
from trine.model.norm import RMSNorm
from trine.model.rope import rotary_table, rotate
from trine.moe.linear import project

if TYPE_CHECKING:
    from trine.model.cache import LayerCache


@dataclass(frozen=True)
class AttentionPlan:
    """What every layer of one forward pass shares."""

    cos_TD: Tensor
    sin_TD: Tensor
    global_mask: Tensor | BlockMask | None
    """[B or 1, 1, T, S]. Added to scores: 0 where a query may look, -inf elsewhere; bool, True there, when a cache made
    the plan; on CUDA lists of blocks. None: plain causal."""
    local_mask: Tensor | BlockMask | None
    """The same for local layers; in block form [B or 1, blocks, window, 2 window] when `blocked`."""
    blocked: bool
    causal: bool = True
    """Without a mask: a query sees the keys up to its own, not all that there are."""
    native: bool = False
    """No masks: the kernels of `native.py` look at `ids_BT`."""
    ids_BT: Tensor | None = None
    """Document ids, int32, for them."""


def plan_attention(
    config: ModelConfig,
    length: int,
    ids_BT: Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
) -> AttentionPlan:
    """Masks and rotary tables for positions 0 ... length - 1; `ids_BT` are document ids (-1 padding) or None."""
    positions = torch.arange(length, device=device)
    cos, sin = rotary_table(positions, config.head_dim, config.rope_theta, dtype)
    if native_attention_applies(config.head_dim, device, dtype):
        ids = None if ids_BT is None else ids_BT.to(torch.int32)
        return AttentionPlan(cos, sin, None, None, blocked=False, native=True, ids_BT=ids)
    window = config.sliding_window
    if uses_flex(device):
        wide = None if ids_BT is None else block_mask(length, None, ids_BT, device)
        narrow = wide if length <= window else block_mask(length, window, ids_BT, device)
        return AttentionPlan(cos, sin, wide, narrow, blocked=False)
    blocked = length > 2 * window
    if ids_BT is None:
        wide = None
        narrow = None if length <= window else _band(positions, window)
    else:
        wide = _band(positions, None)
        narrow = _band(positions, window)
    if blocked:
        narrow = _block_mask(length, window, ids_BT, device)
    if ids_BT is not None:
        same = _same_document(ids_BT, ids_BT)
        wide = same if wide is None else wide & same
        narrow = narrow if blocked or narrow is None else narrow & same
    return AttentionPlan(cos, sin, _additive(wide, dtype), _additive(narrow, dtype), blocked)


def _additive(seen: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if seen is None:
        return None
    return torch.zeros(seen.shape, device=seen.device, dtype=dtype).masked_fill_(~seen, float("-inf"))


def _band(positions_T: Tensor, window: int | None) -> Tensor:
    distance = positions_T.unsqueeze(1) - positions_T.unsqueeze(0)
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    return seen[None, None]


def _same_document(queries_BT: Tensor, keys_BS: Tensor) -> Tensor:
    """True where ids agree. Padding agrees with padding, so no row is empty and none is NaN."""
    return (queries_BT.unsqueeze(2) == keys_BS.unsqueeze(1)).unsqueeze(1)


def _block_mask(length: int, window: int, ids_BT: Tensor | None, device: torch.device) -> Tensor:
    blocks = -(-length // window)
    query = torch.arange(window, device=device).unsqueeze(1)
    key = torch.arange(-window, window, device=device).unsqueeze(0)
    seen = ((query >= key) & (query - key < window)).expand(1, blocks, window, 2 * window).clone()
    seen[:, 0, :, :window] = False
    if ids_BT is None:
        return seen
    ids = F.pad(ids_BT, (0, blocks * window - length), value=-1).view(ids_BT.shape[0], blocks, window)
    before = F.pad(ids[:, :-1], (0, 0, 1, 0), value=-1)
    return seen & (ids.unsqueeze(3) == torch.cat((before, ids), dim=2).unsqueeze(2))


class Attention(nn.Module):
    """Per-head QK-norm, rotary positions on local layers, grouped queries, sigmoid gate before the output."""

    def __init__(self, config: ModelConfig, kind: LayerType) -> None:
        super().__init__()
        width = config.num_attention_heads * config.head_dim
        narrow = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, narrow, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False) if config.attention_gate else None
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.head_dim = config.head_dim
        self.window = config.sliding_window
        self.local = kind == "sliding_attention"
        self.rotary = self.local or config.global_rope

    def forward(self, x_BTD: Tensor, plan: AttentionPlan, cache: LayerCache | None) -> Tensor:
        query = self.q_norm(self._heads(x_BTD, self.q_proj)).transpose(1, 2)
        key = self.k_norm(self._heads(x_BTD, self.k_proj)).transpose(1, 2)
        value = self._heads(x_BTD, self.v_proj).transpose(1, 2)
        if self.rotary:
            query = rotate(query, plan.cos_TD, plan.sin_TD)
            key = rotate(key, plan.cos_TD, plan.sin_TD)
        if cache is not None:
            key, value = cache.extend(key, value)
        out = self._attend(query, key, value, plan).transpose(1, 2).flatten(2)
        if self.gate_proj is not None:
            out = out * project(x_BTD, self.gate_proj).sigmoid()
        return project(out, self.o_proj)

    def _heads(self, x_BTD: Tensor, projection: nn.Linear) -> Tensor:
        return project(x_BTD, projection).unflatten(-1, (-1, self.head_dim))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
        if plan.native:
            query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            return native_attention(query, key, value, plan.ids_BT, self.window if self.local else 0).transpose(1, 2)
        mask = plan.local_mask if self.local else plan.global_mask
        if isinstance(mask, BlockMask):
            return flex(query, key, value, mask)
        if self.local and plan.blocked and mask is not None:
            return blocked_attention(query, key, value, self.window, mask)
        window = self.window if self.local else None
        if plan.causal:
            return attend(query, key, value, mask, window)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int | None) -> Tensor:
    """Softmax attention of `query` [B, H, T, D] over `key` and `value` [B, G, S, D]; see `flash_attention`."""
    if torch.compiler.is_compiling() and query.device.type == "cpu":
        return flash_attention(query, key, value, mask, window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


def blocked_attention(query: Tensor, key: Tensor, value: Tensor, window: int, mask: Tensor) -> Tensor:
    """Window attention [B, H, T, D] by blocks of `window` queries against two blocks of keys.

    `mask` is added to scores, [B or 1, blocks, window, 2 window]. Equal to the masked form up to summation order.
    """
    batch, heads, length, dim = query.shape
    blocks = mask.shape[1]
    padding = blocks * window - length

    def split(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, padding)).view(batch, x.shape[1], blocks, window, dim)
        return x.transpose(1, 2)

    def with_previous(x: Tensor) -> Tensor:
        own = split(x)
        before = F.pad(own[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.cat((before, own), dim=3).flatten(0, 1)

    seen = mask.expand(batch, -1, -1, -1).flatten(0, 1).unsqueeze(1)
    out = attend(split(query).flatten(0, 1), with_previous(key), with_previous(value), seen, window)
    out = out.view(batch, blocks, heads, window, dim).transpose(1, 2)
    return out.reshape(batch, heads, blocks * window, dim)[:, :, :length]
