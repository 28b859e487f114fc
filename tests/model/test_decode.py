"""Generation with a cache equals generation without one, and the cache is bounded by the window."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.model.shapes import in_transformers, random_tokens, small_config, small_model
from trine.errors import BadInput
from trine.model import decode
from trine.model.decode import Cache, generate, sample


@pytest.mark.parametrize("window", [1, 5, 8, 64])
@pytest.mark.parametrize("pieces", [[40], [1] * 40, [7, 1, 20, 12], [39, 1]])
def test_logits_with_a_cache_equal_the_whole_sequence(window: int, pieces: list[int]) -> None:
    model = small_model(small_config(sliding_window=window), bias=0.2).eval()
    tokens = random_tokens(2, 40)
    expected = model(tokens).detach()
    cache, begin, parts = Cache(model), 0, []
    for size in pieces:
        parts.append(model(tokens[:, begin : begin + size], cache=cache))
        begin += size
    assert torch.allclose(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    for kind, layer in zip(model.config.layers(), cache.layers, strict=True):
        assert layer.key is not None
        held = layer.key.shape[2]
        assert held == (40 if kind == "full_attention" else min(40, window - 1))


def test_greedy_text_equals_transformers(tmp_path: Path) -> None:
    model = small_model(bias=0.2).eval()
    peer = in_transformers(model, tmp_path / "peer").eval()
    prompt = random_tokens(1, 6)
    theirs = peer.generate(prompt, max_new_tokens=25, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert list(generate(model, prompt[0].tolist(), 25, temperature=0)) == theirs[0, 6:].tolist()


def test_long_prompts_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model().eval()
    prompt = random_tokens(1, 50)[0].tolist()
    whole = list(generate(model, prompt, 5, temperature=0))
    monkeypatch.setattr(decode, "_PREFILL_TOKENS", 7)
    assert list(generate(model, prompt, 5, temperature=0)) == whole


def test_the_same_seed_gives_the_same_tokens_and_a_prefix() -> None:
    model = small_model().eval()
    long, short, other = (list(generate(model, [1, 2], n, seed=s)) for n, s in ((20, 3), (8, 3), (20, 4)))
    assert long[:8] == short
    assert long != other


def test_stop_tokens_end_and_padded_vocabulary_is_never_drawn() -> None:
    model = small_model().eval()
    tokens = list(generate(model, [1], 200, temperature=5.0, choices=50))
    assert max(tokens) < 50
    stop = tokens[3]
    assert list(generate(model, [1], 200, temperature=5.0, choices=50, stop=frozenset({stop}))) == tokens[:3]


def test_sampling_keeps_to_its_limits() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    generator = torch.Generator().manual_seed(0)

    def drawn(**limits: float) -> set[int]:
        options = {"temperature": 1.0, "top_k": None, "top_p": 1.0} | limits
        return {sample(logits, generator=generator, **options) for _ in range(300)}  # type: ignore[arg-type]

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.6) == {0}
    assert drawn(top_p=0.65) == {0, 1}
    assert drawn(temperature=0) == {0}
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[sample(logits, 1.0, None, 1.0, generator)] += 1
    assert torch.allclose(counts / 4000, logits.softmax(-1), atol=0.03)


def test_bad_prompts_are_refused() -> None:
    model = small_model()
    with pytest.raises(BadInput, match="empty"):
        next(generate(model, [], 1))
    with pytest.raises(BadInput, match="token 97"):
        next(generate(model, [1, 97], 1))
