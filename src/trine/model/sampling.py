"""From logits to the next token: temperature, top-k, top-p, min-p, repetition penalty.

Filters act in transformers' order (penalty, temperature, top-k, top-p, min-p), each on what the one before it left.
Draw i of a text comes from a generator keyed by (seed, the text's number, i): a text does not depend on what is
generated beside it, and a longer request begins with the shorter one's tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trine.errors import BadInput


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Raises BadInput for a value outside its range."""

    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Keep the k most likely tokens."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches this."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Divide positive logits, and multiply negative ones, of tokens that occurred (Keskar et al. 2019, section 4.1)."""
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k is None or self.top_k >= 1, "1 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
        }
        for name, (fits, expected) in limits.items():
            if not fits:
                raise BadInput(f"{name} is {getattr(self, name)}; expected {expected}")


def choose(
    logits_BV: Tensor, sampling: Sampling, streams: Sequence[int], draw: int, histories: Sequence[Sequence[int]]
) -> list[int]:
    """One token per row of fp32 logits; `streams` numbers the rows' texts, `histories` are their tokens so far."""
    if sampling.repetition_penalty != 1:
        logits_BV = penalise(logits_BV, histories, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return logits_BV.argmax(-1).tolist()
    weights, ids = likely(logits_BV, sampling)
    ends = weights.double().cumsum(-1)
    points = torch.tensor([[_uniform(sampling.seed, stream, draw)] for stream in streams], dtype=torch.float64)
    places = torch.searchsorted(ends, points * ends[:, -1:], right=True)
    last = (weights > 0).sum(-1, keepdim=True) - 1
    return ids.gather(-1, places.minimum(last)).squeeze(-1).tolist()


def likely(logits_BV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Weights, not normalised, of the tokens that may be drawn, most likely first, and their ids; 0 for the others."""
    count = min(sampling.top_k or logits_BV.shape[-1], logits_BV.shape[-1])
    if count < logits_BV.shape[-1]:
        logits, ids = logits_BV.topk(count, sorted=True)
    else:
        logits, ids = logits_BV.sort(descending=True, stable=True)
    weights = (logits / sampling.temperature).softmax(-1)
    before = weights.cumsum(-1) - weights
    weights = weights * (before < sampling.top_p)
    return weights * (weights >= sampling.min_p * weights[:, :1]), ids


def penalise(logits_BV: Tensor, histories: Sequence[Sequence[int]], penalty: float) -> Tensor:
    """Logits in which tokens that occurred are less likely."""
    logits_BV = logits_BV.clone()
    for row, history in zip(logits_BV, histories, strict=True):
        seen = torch.tensor(sorted({token for token in history if token < len(row)}), dtype=torch.long)
        row[seen] = torch.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
    return logits_BV


def _uniform(seed: int, stream: int, draw: int) -> float:
    """A number in [0, 1) of its own for each (seed, stream, draw)."""
    key = hashlib.sha256(f"{seed}/sample/{stream}/{draw}".encode()).digest()
    return int.from_bytes(key[:8], "little") / 2**64
