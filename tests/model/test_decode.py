"""Cached, batched and uncached generation give the same tokens; the cache is bounded by the window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.shapes import in_transformers, random_tokens, small_config, small_model
from trine.errors import BadInput
from trine.model import decode
from trine.model.afmoe import Afmoe
from trine.model.cache import Cache
from trine.model.decode import GREEDY, AfmoeContext, common_beginning, generate
from trine.model.sampling import Sampling


def texts(model: Afmoe, prompts: list[list[int]], tokens: int, sampling: Sampling, **options: Any) -> list[list[int]]:
    """What each prompt is continued with."""
    found: list[list[int]] = [[] for _ in prompts]
    for fresh in generate(model, prompts, tokens, sampling, **options):
        for row, token in fresh.items():
            found[row].append(token)
    return found


@torch.no_grad()
def uncached(model: Afmoe, prompt: list[int], tokens: int, stop: frozenset[int] = frozenset()) -> list[int]:
    """Greedy continuation by whole forward passes."""
    text = list(prompt)
    for _ in range(tokens):
        token = int(model(torch.tensor([text]))[0, -1].argmax())
        if token in stop:
            break
        text.append(token)
    return text[len(prompt) :]


def prompts_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    return [random_tokens(1, length, seed=seed + i)[0].tolist() for i, length in enumerate(lengths)]


@pytest.mark.parametrize("window", [1, 5, 8, 64])
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [7, 1, 20, 12], [39, 1]])
def test_logits_with_a_cache_equal_the_whole_sequence(window: int, pieces: list[int]) -> None:
    model = small_model(small_config(sliding_window=window), bias=0.2).eval()
    tokens = random_tokens(2, 40)
    expected = model(tokens).detach()
    cache, begin, parts = Cache(model.config, 2, 48, model.output_weight), 0, []
    with torch.no_grad():
        for size in pieces:
            parts.append(model(tokens[:, begin : begin + size], cache=cache))
            begin += size
    assert torch.allclose(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    for kind, layer in zip(model.config.layers(), cache.layers, strict=True):
        assert layer.key.shape[2] == (48 + 1 if kind == "full_attention" else min(48, window)), "one slot takes padding"


@pytest.mark.parametrize("window", [3, 8, 64])
def test_rows_may_go_on_by_different_lengths(window: int) -> None:
    model = small_model(small_config(sliding_window=window), bias=0.2).eval()
    rows = prompts_of(31, 12, 23)
    cuts = [[0, 9, 9, 30, 31], [0, 2, 7, 11, 12], [0, 9, 21, 22, 23]]
    context = AfmoeContext(model, 31)
    context.select([0, 0, 0])
    logits = torch.empty(0)
    with torch.no_grad():
        for i in range(1, 5):
            pieces = [row[cut[i - 1] : cut[i]] for row, cut in zip(rows, cuts, strict=True)]
            width = max(map(len, pieces))
            ids = torch.tensor([[0] * len(p) + [-1] * (width - len(p)) for p in pieces])
            tokens = torch.tensor([p + [0] * (width - len(p)) for p in pieces])
            logits = model(tokens, ids, context.cache)
        for row, found in zip(rows, logits, strict=True):
            expected = model(torch.tensor([row]))[0, -1]
            assert torch.allclose(found[0], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert context.cache.lengths == [31, 12, 23]


@pytest.mark.parametrize("window", [1, 4, 8, 64])
def test_cached_batched_and_uncached_greedy_tokens_are_equal(window: int) -> None:
    model = small_model(small_config(sliding_window=window), bias=0.2).eval()
    prompts = prompts_of(1, 30, 7, 12, 12)
    expected = [uncached(model, prompt, 20) for prompt in prompts]
    assert [texts(model, [prompt], 20, GREEDY)[0] for prompt in prompts] == expected
    assert texts(model, prompts, 20, GREEDY) == expected


def test_rows_end_at_different_steps() -> None:
    model = small_model(bias=0.2).eval()
    prompts = prompts_of(3, 20, 9, 5, 14)
    stop = frozenset(range(0, 97, 9))
    expected = [uncached(model, prompt, 30, stop) for prompt in prompts]
    assert len({len(one) for one in expected}) > 2, "the stop tokens end rows at one step: choose others"
    assert texts(model, prompts, 30, GREEDY, stop=stop) == expected


def test_a_common_beginning_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(bias=0.2).eval()
    shared = prompts_of(25)[0]
    prompts = [shared + tail for tail in prompts_of(1, 6, 3, seed=5)]
    expected = [uncached(model, prompt, 12) for prompt in prompts]
    read: list[int] = []
    original = AfmoeContext.read

    def counting(self: AfmoeContext, rows: list[list[int]]) -> torch.Tensor:
        read.append(sum(map(len, rows)))
        return original(self, rows)

    monkeypatch.setattr(AfmoeContext, "read", counting)
    assert texts(model, prompts, 12, GREEDY) == expected
    assert read[:2] == [25, 10]


def test_common_beginning_leaves_every_prompt_a_token() -> None:
    assert common_beginning([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_beginning([[1, 2, 3], [1, 2, 3, 4]]) == 2
    assert common_beginning([[1], [1, 2]]) == 0
    assert common_beginning([[7, 2], [1, 2]]) == 0


def test_the_caller_may_end_rows() -> None:
    model = small_model(bias=0.2).eval()
    prompts = prompts_of(4, 9)
    whole = texts(model, prompts, 12, GREEDY)
    ended: set[int] = set()
    found: list[list[int]] = [[], []]
    for fresh in generate(model, prompts, 12, GREEDY, ended=ended):
        for row, token in fresh.items():
            found[row].append(token)
        if len(found[0]) == 3:
            ended.add(0)
    assert found == [whole[0][:3], whole[1]]


def test_greedy_text_equals_transformers(tmp_path: Path) -> None:
    model = small_model(bias=0.2).eval()
    peer = in_transformers(model, tmp_path / "peer").eval()
    prompt = random_tokens(1, 6)
    theirs = peer.generate(prompt, max_new_tokens=25, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert texts(model, prompt.tolist(), 25, GREEDY) == [theirs[0, 6:].tolist()]


@pytest.mark.parametrize("tokens", [4, 20])
def test_long_prompts_are_read_in_pieces(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model().eval()
    prompts = prompts_of(50, 31, 14, 3)
    whole = texts(model, prompts, 5, GREEDY)
    monkeypatch.setattr(decode, "_READ_TOKENS", tokens)
    assert texts(model, prompts, 5, GREEDY) == whole


def test_a_text_depends_on_its_number_and_seed_alone() -> None:
    model = small_model().eval()
    prompts = prompts_of(4, 9, 6)
    long, short, other = (texts(model, prompts, n, Sampling(seed=s)) for n, s in ((20, 3), (8, 3), (20, 4)))
    assert [one[:8] for one in long] == short
    assert all(one != another for one, another in zip(long, other, strict=True))
    assert texts(model, prompts[2:], 20, Sampling(seed=3), streams=[2]) == long[2:]
    assert texts(model, [prompts[0]] * 2, 20, Sampling(seed=3))[1] != long[0]


def test_padded_vocabulary_is_never_drawn() -> None:
    model = small_model().eval()
    assert max(texts(model, [[1]], 200, Sampling(temperature=5.0), choices=50)[0]) < 50


def test_bad_prompts_are_refused() -> None:
    model = small_model()
    with pytest.raises(BadInput, match="the prompt is empty"):
        next(generate(model, [[]], 1))
    with pytest.raises(BadInput, match="token 97"):
        next(generate(model, [[1, 97]], 1))
    with pytest.raises(BadInput, match="prompt 2 of 2 holds token -3"):
        next(generate(model, [[1], [5, -3, 96]], 1))
