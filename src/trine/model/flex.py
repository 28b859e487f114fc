"""Masked attention on CUDA by FlexAttention: no mask of every query and key is ever made.

Scores are computed in blocks of 128 queries and 128 keys. A `BlockMask` lists, for each block of queries, the blocks of
keys that all of its queries see (`full`: computed as they are) and those that some may see (computed, then each score
is asked). The lists come from the positions and from the smallest and largest document id of every block, so making
them costs (T / 128)^2 and does not wait for the device. A block may be listed although none of its pairs meet, when ids
do not rise along a row; it costs time and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

_BLOCK = 128


def uses_flex(device: torch.device) -> bool:
    """Whether masks on `device` are block masks. Off CUDA FlexAttention has no backward pass."""
    return device.type == "cuda"


def block_mask(length: int, window: int | None, ids_BT: Tensor | None, device: torch.device) -> BlockMask:
    """The mask of `length` queries over as many keys: causal, within `window` and within documents where given.

    `ids_BT` are document ids; padding (-1) sees padding, so that no row is empty.
    """
    blocks = -(-length // _BLOCK)
    index = torch.arange(blocks, device=device)
    apart = index.unsqueeze(1) - index  # blocks of queries after blocks of keys
    some, all_seen = apart >= 0, apart > 0
    if window is not None:
        some = some & (_BLOCK * apart - (_BLOCK - 1) < window)
        all_seen = all_seen & (_BLOCK * apart + (_BLOCK - 1) < window)
    if length % _BLOCK:
        whole = index < blocks - 1
        all_seen = all_seen & whole & whole.unsqueeze(1)
    some, all_seen = some[None, None], all_seen[None, None]
    if ids_BT is not None:
        low, high = _id_range(ids_BT, blocks)
        one = (low == high).unsqueeze(2) & (low.unsqueeze(2) == low.unsqueeze(1)) & (low == high).unsqueeze(1)
        meet = (low.unsqueeze(2) <= high.unsqueeze(1)) & (low.unsqueeze(1) <= high.unsqueeze(2))
        some, all_seen = some & meet.unsqueeze(1), all_seen & one.unsqueeze(1)
    partial = some & ~all_seen
    return BlockMask.from_kv_blocks(
        *_listed(partial),
        *_listed(all_seen),
        BLOCK_SIZE=_BLOCK,
        mask_mod=_seen(window, ids_BT),
        seq_lengths=(length, length),
    )


def flex(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    """Softmax attention of `query` [B, H, T, D] over `key` and `value` [B, G, T, D] where `mask` allows it.

    Always compiled, also where the model is not: written out it would hold every score.
    """
    if torch.compiler.is_compiling():
        return _attend(query, key, value, mask)
    with torch.compiler.set_stance("default"):
        return _compiled()(query, key, value, mask)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    out = flex_attention(query, key, value, block_mask=mask, enable_gqa=True)
    assert isinstance(out, Tensor)
    return out


@cache
def _compiled() -> Any:
    return torch.compile(_attend)


def _seen(window: int | None, ids_BT: Tensor | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether `query` sees `key`: positions in row `batch`."""

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        result = query >= key
        if window is not None:
            result = result & (query - key < window)
        if ids_BT is not None:
            result = result & (ids_BT[batch, query] == ids_BT[batch, key])
        return result

    return seen


def _id_range(ids_BT: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest document id of each block, [B, blocks] each."""
    rows, length = ids_BT.shape
    rest = ids_BT[:, -1:].expand(rows, blocks * _BLOCK - length)
    return torch.cat((ids_BT, rest), dim=1).view(rows, blocks, _BLOCK).aminmax(dim=2)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which: those first, int32."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32)
