"""Block masks against the masks of every query and key, and FlexAttention under them, on the CPU without gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask
from torch.nn.functional import scaled_dot_product_attention

from tests.model.shapes import random_tokens, small_config, small_model
from trine.model.flex import block_mask, flex
from trine.train.fast import compile_blocks, cpp_compiler, uncompiled

CPU = torch.device("cpu")
ROWS = 3
needs_compiler = pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")


def document_ids(length: int, kind: str) -> torch.Tensor | None:
    index = torch.arange(length, dtype=torch.int32)
    match kind:
        case "none":
            return None
        case "one":
            return torch.zeros(ROWS, length, dtype=torch.int32)
        case "documents":
            return torch.stack([index // 5, index // 130, index // 400])
        case "padding":
            ids = torch.stack([index // 100, index // 250, index // 1000])
            ids[1, length // 2 :] = -1
            ids[2, :] = -1
            return ids
        case "not rising":
            return torch.stack([index % 3, 7 - index // 128, (index // 128) % 2])
    raise AssertionError(kind)


def every_pair(length: int, window: int | None, ids: torch.Tensor | None) -> torch.Tensor:
    """Bool [B or 1, 1, T, T], from the definition."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = ((query >= key) & (query - key < (window or length)))[None, None]
    return seen if ids is None else seen & (ids[:, None, :, None] == ids[:, None, None, :])


def in_blocks(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which blocks of 128 x 128 have some pair, and which have all."""
    length = seen.shape[-1]
    blocks = -(-length // 128)
    padded = torch.nn.functional.pad(seen, (0, blocks * 128 - length) * 2)
    count = padded.view(*seen.shape[:2], blocks, 128, blocks, 128).sum((3, 5))
    return count > 0, count == 128 * 128


KINDS = ["none", "one", "documents", "padding", "not rising"]


@pytest.mark.parametrize("length", [100, 128, 512, 1000])
@pytest.mark.parametrize("window", [None, 1, 60, 128, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_that_meets_is_in_a_listed_block_and_no_other_is_seen(
    length: int, window: int | None, kind: str
) -> None:
    ids = document_ids(length, kind)
    mask, seen = block_mask(length, window, ids, CPU), every_pair(length, window, ids)
    rows = seen.shape[0]
    assert torch.equal(create_mask(mask.mask_mod, rows, 1, length, length, device="cpu"), seen)
    some, all_seen = in_blocks(seen)
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    first = torch.arange(some.shape[-1]) < mask.full_kv_num_blocks.unsqueeze(-1)
    full = torch.zeros_like(some).scatter_(-1, mask.full_kv_indices.long(), first)
    listed = mask.to_dense().bool()
    assert not (full & ~all_seen).any()
    assert not (some & ~listed).any()
    if window is None and kind != "not rising":
        assert torch.equal(full, all_seen)
        assert torch.equal(listed, some) or kind == "padding"


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 90])
def test_flex_attention_equals_the_masked_form(window: int | None, kind: str) -> None:
    length, generator = 300, torch.Generator().manual_seed(0)
    ids = document_ids(length, kind)
    query, key, value = (torch.randn(ROWS, heads, length, 16, generator=generator) for heads in (4, 2, 2))
    ours = flex(query, key, value, block_mask(length, window, ids, CPU))
    seen = every_pair(length, window, ids)
    plain = scaled_dot_product_attention(query.double(), key.double(), value.double(), attn_mask=seen, enable_gqa=True)
    assert torch.allclose(ours.double(), plain, rtol=1e-5, atol=1e-5)


@needs_compiler
@torch.no_grad()
def test_a_compiled_model_under_block_masks_computes_the_same_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of layer, several batches: new documents are new data, not new code."""
    layers = ("sliding_attention", "full_attention")
    config = small_config(num_hidden_layers=2, num_dense_layers=2, layer_types=layers, head_dim=16)
    plain = small_model(config).eval()
    model = copy.deepcopy(plain)
    compile_blocks(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    built: list[int] = []
    for seed in range(3):
        tokens = random_tokens(ROWS, 300, seed=seed)
        ids = (torch.arange(300, dtype=torch.int32) // (20 + 50 * seed)).repeat(ROWS, 1)
        for given in (None, ids):
            expected, _ = plain.hidden(tokens, given)
            with monkeypatch.context() as patch:
                patch.setattr("trine.model.attention.uses_flex", lambda device: True)
                states, _ = model.hidden(tokens, given)
            assert torch.allclose(states, expected, rtol=1e-4, atol=1e-4)
        built.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert built[0] == built[-1] > 0


@needs_compiler
@torch.no_grad()
def test_flex_attention_is_compiled_also_where_the_rest_is_not() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    query, key, value = torch.randn(3, 1, 2, 150, 16)
    with uncompiled():
        flex(query, key, value, block_mask(150, 20, None, CPU))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
