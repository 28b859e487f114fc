"""The compiled step computes what torch's does: as near to fp32 as torch's bf16, for every part a block may lack."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.model.shapes import random_tokens, small_config, small_model
from tests.model.test_decode import prompts_of, texts
from trine.model.afmoe import Afmoe
from trine.model.cache import Cache
from trine.model.decode import GREEDY, AfmoeContext
from trine.model.native_step import native_step
from trine.native import build

WIDE = {
    "hidden_size": 64,
    "head_dim": 32,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "sliding_window": 6,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd widths": {"hidden_size": 96, "moe_intermediate_size": 96, "intermediate_size": 160},
    "wide heads": {"head_dim": 96, "num_key_value_heads": 4, "num_shared_experts": 2},
    "grouped heads": {"num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 64, "num_experts": 19},
    "long window": {"sliding_window": 64},
    "tied": {"tie_word_embeddings": True, "mup_enabled": False},
    "no sandwich norm": {"sandwich_norm": False},
    "no gate": {"attention_gate": False},
    "rope everywhere": {"global_rope": True},
    "dense": {"num_dense_layers": 4},
}
ARMS = {"this processor": (), "without AMX": ("-mno-amx-bf16",)}
"""Compiler flags of both ways to multiply."""

pytestmark = pytest.mark.skipif(build.library("decode") is None, reason="no C compiler")


def pair(**changes: Any) -> tuple[Afmoe, Afmoe]:
    """The same bf16 weights in bf16 and in fp32; biases so far apart that rounding changes no selection."""
    half = small_model(small_config(**(WIDE | changes)), bias=20.0).to(torch.bfloat16).eval()
    whole = Afmoe(half.config).eval()
    whole.load_state_dict(half.state_dict())
    for one, other in zip(half.moe_layers().values(), whole.moe_layers().values(), strict=True):
        one.expert_bias = other.expert_bias = one.expert_bias.float() + 4 * torch.arange(len(one.expert_bias))
    return half, whole


@torch.no_grad()
def stepped(model: Afmoe, rows: list[list[int]], flags: tuple[str, ...] | None) -> torch.Tensor:
    """Logits [15, B, V] after each token that follows the rows' first five; `flags` None: by torch."""
    context = AfmoeContext(model, 40)
    context.select([0] * len(rows))
    context.step = None if flags is None else native_step(model, context.cache, *flags)
    assert (context.step is None) == (flags is None)
    context.read([row[:5] for row in rows])
    return torch.stack([context.read([[row[i]] for row in rows]) for i in range(5, 20)])


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_as_near_to_fp32_as_those_of_torch_in_bf16(variant: str, arm: str) -> None:
    half, whole = pair(**VARIANTS[variant])
    rows = random_tokens(5, 20).tolist()
    exact, ours, torchs = stepped(whole, rows, None), stepped(half, rows, ARMS[arm]), stepped(half, rows, None)
    error, theirs = ((one - exact).square().mean().sqrt() / exact.square().mean().sqrt() for one in (ours, torchs))
    assert error < 1.1 * theirs
    assert error < 0.03


@pytest.mark.parametrize("arm", ARMS)
def test_a_row_depends_neither_on_the_others_nor_on_threads(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    half, _ = pair()
    rows = random_tokens(19, 20).tolist()
    together = stepped(half, rows, ARMS[arm])
    context = AfmoeContext(half, 40)
    context.step = native_step(half, context.cache, *ARMS[arm])
    context.select([0] * len(rows))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with torch.no_grad():
        context.read([row[:5] for row in rows])
        context.select([3, 17])
        apart = torch.stack([context.read([[rows[3][i]], [rows[17][i]]]) for i in range(5, 20)])
    assert torch.equal(apart, together[:, [3, 17]])


@torch.no_grad()
def test_greedy_texts_of_ragged_batches_are_those_without_cache_in_fp32() -> None:
    """But for ties of bf16: every token is the likeliest one, or within rounding of it."""
    half, whole = pair(sliding_window=8)
    prompts = prompts_of(3, 20, 9, 9, 1)
    found = texts(half, prompts, 12, GREEDY)
    assert [texts(half, [prompt], 12, GREEDY)[0] for prompt in prompts] == found
    same = 0
    for prompt, text in zip(prompts, found, strict=True):
        logits = whole(torch.tensor([prompt + text]))[0, len(prompt) - 1 : -1]
        behind = logits.amax(-1) - logits.gather(1, torch.tensor(text).unsqueeze(1)).squeeze(1)
        assert behind.max() < 0.05 * logits.std()
        same += int((behind == 0).sum())
    assert same >= 57, f"{same} of 60"


def test_torch_steps_where_the_kernel_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    half, whole = pair()
    like = half.output_weight
    assert native_step(half, Cache(half.config, 1, 8, like)) is not None
    assert native_step(whole, Cache(half.config, 1, 8, like)) is None, "fp32 weights"
    assert native_step(half, Cache(half.config, 1, 8, like.float())) is None, "fp32 cache"
    narrow = pair(hidden_size=48)[0]
    assert native_step(narrow, Cache(narrow.config, 1, 8, like)) is None, "a width that is no multiple of 32"
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    build.library.cache_clear()
    try:
        assert native_step(half, Cache(half.config, 1, 8, like)) is None, "no compiler"
        prompts = prompts_of(3, 9)
        assert [len(one) for one in texts(half, prompts, 4, GREEDY)] == [4, 4]
    finally:
        build.library.cache_clear()
