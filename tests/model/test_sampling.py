"""Sampling keeps what transformers' logits processors keep, and draws by weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trine.errors import BadInput
from trine.model.sampling import Sampling, choose, likely, penalise


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.1},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.7, "min_p": 0.2, "repetition_penalty": 1.3},
        {"repetition_penalty": 0.8, "top_k": 1000},
    ],
)
def test_probabilities_equal_transformers(options: dict[str, Any]) -> None:
    sampling = Sampling(**options)
    logits = 3 * torch.randn(4, 60, generator=torch.Generator().manual_seed(1))
    history = torch.randint(0, 60, (4, 9), generator=torch.Generator().manual_seed(2))
    processors: list[Any] = [RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    processors += [TemperatureLogitsWarper(sampling.temperature)] if sampling.temperature != 1 else []
    processors += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    processors += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    processors += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    expected = logits.clone()
    for process in processors:
        expected = process(history, expected)
    weights, ids = likely(penalise(logits, history.tolist(), sampling.repetition_penalty), sampling)
    found = torch.zeros(4, 60).scatter(1, ids, weights / weights.sum(-1, keepdim=True))
    assert torch.allclose(found, expected.softmax(-1), atol=1e-6)


def test_tokens_are_drawn_by_weight() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    counts = torch.zeros(4)
    for i in range(4000):
        counts[choose(logits, Sampling(), [0], i, [[]])[0]] += 1
    assert torch.allclose(counts / 4000, logits[0].softmax(-1), atol=0.03)


def test_limits_and_the_likeliest_token() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(50, 4)

    def drawn(sampling: Sampling) -> set[int]:
        return set(choose(logits, sampling, range(50), 0, [[]] * 50))

    assert drawn(Sampling(temperature=0)) == {0}
    assert drawn(Sampling(top_k=2)) == {0, 1}
    assert drawn(Sampling(top_p=0.6)) == {0}
    assert drawn(Sampling(top_p=0.65)) == {0, 1}
    assert drawn(Sampling(min_p=1.0)) == {0}
    assert choose(logits[:1], Sampling(temperature=0, repetition_penalty=3.0), [0], 0, [[0, 0, 7]]) == [1]


def test_values_outside_their_range_are_refused() -> None:
    for name, value in {"temperature": -1, "top_k": 0, "top_p": 0, "min_p": 2, "repetition_penalty": 0}.items():
        with pytest.raises(BadInput, match=f"{name} is {value}; expected"):
            Sampling(**{name: value})  # type: ignore[arg-type]
