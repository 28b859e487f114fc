"""Keys and values of the tokens already read, in buffers of fixed size.

Rows begin at slot 0 and have lengths of their own: token p of a row lies in slot p of a global layer and in slot
p mod window of a local one, which therefore holds the window and no more. What lies beyond a row's length is hidden by
the mask and overwritten later, so rows of different lengths need no padding inside. Rotary positions are already in
the keys, and attention does not care about their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trine.model.attention import AttentionPlan, plan_attention
from trine.model.config import ModelConfig
from trine.model.rope import rotary_table


@dataclass(frozen=True)
class Coming:
    """Where the tokens of one forward pass go."""

    rows_B1: Tensor
    slots_BT: Tensor
    """Their positions, int64; padding goes to the spare slot of global layers."""
    end: int
    """Slots of a global layer that hold something when they are in: the longest row's."""
    past: int
    """The longest row's length before."""
    source_BW: Tensor | None
    """For each slot of a window, which of several coming tokens it holds afterwards; negative: the old one."""
    first: bool
    """Rows are empty and get equally many tokens."""


class LayerCache:
    """Keys and values [B, H, S, D] of one layer; `window` slots at most when that is set."""

    def __init__(self, shape: tuple[int, int, int, int], window: int | None, like: Tensor) -> None:
        rows, heads, capacity, dim = shape
        self.window = window
        slots = capacity + 1 if window is None else min(window, capacity)
        self.key = like.new_zeros(rows, heads, slots, dim)
        self.value = torch.zeros_like(self.key)
        self.coming: Coming | None = None

    def extend(self, key_BHTD: Tensor, value_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the coming tokens; return all that their queries may look at."""
        coming = self.coming
        assert coming is not None, "Cache.plan comes before the layers"
        tokens = key_BHTD.shape[2]
        if coming.first and tokens <= self.key.shape[2]:
            self.key[:, :, :tokens], self.value[:, :, :tokens] = key_BHTD, value_BHTD
            return key_BHTD, value_BHTD
        if self.window is None or coming.source_BW is None:
            slots = coming.slots_BT if self.window is None else coming.slots_BT % self.key.shape[2]
            for buffer, fresh in ((self.key, key_BHTD), (self.value, value_BHTD)):
                buffer[coming.rows_B1, :, slots] = fresh.transpose(1, 2)
            return self.key[:, :, : coming.end], self.value[:, :, : coming.end]
        seen = (key_BHTD, value_BHTD)
        if coming.past:
            seen = (torch.cat((self.key, key_BHTD), 2), torch.cat((self.value, value_BHTD), 2))
        index = coming.source_BW[:, None, :, None].expand(-1, *self.key.shape[1:2], -1, self.key.shape[3])
        for buffer, fresh in ((self.key, key_BHTD), (self.value, value_BHTD)):
            buffer.copy_(torch.where(index >= 0, fresh.gather(2, index.clamp_min(0)), buffer))
        return seen


class Cache:
    """One LayerCache per block: global layers keep every key, local layers the window."""

    def __init__(self, config: ModelConfig, rows: int, capacity: int, like: Tensor) -> None:
        """Room for `capacity` tokens in each of `rows` rows; dtype and device as `like`."""
        self.config, self.capacity = config, capacity
        shape = (rows, config.num_key_value_heads, capacity, config.head_dim)
        windows = [config.sliding_window if kind == "sliding_attention" else None for kind in config.layers()]
        self.layers = [LayerCache(shape, window, like) for window in windows]
        self.lengths = [0] * rows
        """Tokens each row holds."""

    def plan(self, tokens: int, counts: list[int] | None, dtype: torch.dtype) -> AttentionPlan:
        """Make room for `tokens` more per row, of which the first `counts[row]` are real; what their queries see."""
        counts = counts or [tokens] * len(self.lengths)
        past, before = max(self.lengths), self.lengths
        self.lengths = [length + count for length, count in zip(before, counts, strict=True)]
        if (end := max(self.lengths)) > self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} tokens, {end} are needed")
        device = self.layers[0].key.device
        lengths, added = torch.tensor([before, counts], device=device).unsqueeze(2)
        places = torch.arange(tokens, device=device)
        positions = lengths + places
        window = min(self.config.sliding_window, self.capacity)
        source, slots = None, torch.arange(window, device=device)
        single = tokens == 1 and 0 not in counts
        if not single:
            source = _held(lengths + added - 1, slots, window) - lengths
        rows = torch.arange(len(counts), device=device).unsqueeze(1)
        first = past == 0 and min(counts) == tokens
        coming = Coming(rows, torch.where(places < added, positions, self.capacity), end, past, source, first)
        for layer in self.layers:
            layer.coming = coming
        if past == 0:
            return plan_attention(self.config, tokens, None, device, dtype)
        cos, sin = rotary_table(positions, self.config.head_dim, self.config.rope_theta, dtype)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        if single:
            even = min(self.lengths) == max(self.lengths)
            wide, near = (None if even else _seen(positions, width) for width in (end, min(end, window)))
            return AttentionPlan(cos, sin, wide, near, blocked=False, causal=False)
        keys = torch.cat((_held(lengths - 1, slots, window), positions), dim=1)
        distance = positions.unsqueeze(2) - keys.unsqueeze(1)
        narrow = (distance >= 0) & (distance < self.config.sliding_window) & (keys >= 0).unsqueeze(1)
        return AttentionPlan(cos, sin, _seen(positions, end), narrow.unsqueeze(1), blocked=False, causal=False)

    def append(self) -> list[int]:
        """Make room for one token per row that is stored without `plan`; their positions."""
        if max(self.lengths) >= self.capacity:
            raise ValueError(f"the cache has room for {self.capacity} tokens, {max(self.lengths) + 1} are needed")
        positions, self.lengths = self.lengths, [length + 1 for length in self.lengths]
        return positions

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        index = torch.tensor(rows, device=self.layers[0].key.device)
        for layer in self.layers:
            layer.key, layer.value = layer.key[index], layer.value[index]
        self.lengths = [self.lengths[row] for row in rows]


def _held(last_B1: Tensor, slots_W: Tensor, window: int) -> Tensor:
    """The position that each slot of a window holds when `last` is the newest, [B, W]; negative: none yet."""
    return last_B1 - (last_B1 - slots_W) % window


def _seen(positions_BT: Tensor, end: int) -> Tensor:
    """Bool [B, 1, T, end]: slots up to the query's own. Of a full window that is every slot."""
    return (torch.arange(end, device=positions_BT.device) <= positions_BT.unsqueeze(2)).unsqueeze(1)
