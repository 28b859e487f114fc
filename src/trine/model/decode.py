"""Generation: token ids in, token ids out, with a cache that keeps only the window on local layers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from trine.errors import BadInput
from trine.model.afmoe import Afmoe
from trine.model.causal import CausalModel

_PREFILL_TOKENS = 4096


class LayerCache:
    """Keys and values [B, H, S, D] of one layer; S is bounded by `keep` when that is set."""

    def __init__(self, keep: int | None) -> None:
        self.keep = keep
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append, return everything the new queries may need, and retain only what later ones will."""
        if self.key is not None and self.value is not None:
            key = torch.cat((self.key, key), dim=2)
            value = torch.cat((self.value, value), dim=2)
        if self.keep is None:
            self.key, self.value = key, value
        else:
            start = max(0, key.shape[2] - self.keep)
            self.key, self.value = key[:, :, start:].clone(), value[:, :, start:].clone()
        return key, value


class Cache:
    """One LayerCache per block: global layers keep every key, local layers the last window - 1."""

    def __init__(self, model: Afmoe) -> None:
        window = model.config.sliding_window
        kinds = model.config.layers()
        self.layers = [LayerCache(window - 1 if kind == "sliding_attention" else None) for kind in kinds]
        self.length = 0
        """Tokens consumed so far."""


@torch.no_grad()
def generate(
    model: Afmoe | CausalModel,
    prompt: list[int],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    stop: frozenset[int] = frozenset(),
    choices: int | None = None,
) -> Iterator[int]:
    """Yield new token ids after `prompt`, up to `max_new_tokens` or a token of `stop` (not yielded).

    Temperature 0 takes the most likely token. Draw i comes from a generator keyed by (seed, i), so a longer
    request begins with the shorter one's tokens. `choices` bounds the ids that may be drawn: the tokenizer's
    size where the model's vocabulary is padded beyond it. Raises BadInput for an empty or foreign prompt.
    """
    vocabulary = model.output_weight.shape[0]
    if not prompt:
        raise BadInput("the prompt is empty: give at least one token")
    if max(prompt) >= vocabulary or min(prompt) < 0:
        raise BadInput(f"the prompt holds token {max(prompt)}, the model knows 0 to {vocabulary - 1}")
    cache = model.new_cache() if isinstance(model, CausalModel) else Cache(model)
    device = model.output_weight.device
    logits = torch.empty(0)
    for begin in range(0, len(prompt), _PREFILL_TOKENS):
        piece = torch.tensor([prompt[begin : begin + _PREFILL_TOKENS]], device=device)
        logits = _last_logits(model, piece, cache)
    for i in range(max_new_tokens):
        token = sample(logits[:choices], temperature, top_k, top_p, _generator(seed, i))
        if token in stop:
            return
        yield token
        if i + 1 < max_new_tokens:
            logits = _last_logits(model, torch.tensor([[token]], device=device), cache)


def _last_logits(model: Afmoe | CausalModel, tokens: Tensor, cache: Any) -> Tensor:
    hidden, _ = model.hidden(tokens, cache=cache)
    last = hidden[0, -1]
    return (model.output_weight.to(last.dtype) @ last).float().cpu()


def sample(logits_V: Tensor, temperature: float, top_k: int | None, top_p: float, generator: torch.Generator) -> int:
    """One id from fp32 logits [V]: the most likely for temperature 0, else a draw after top-k and top-p.

    top-p keeps the smallest set of most likely ids whose probability reaches `top_p`.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    probability, ids = (logits_V / temperature).softmax(-1).sort(descending=True, stable=True)
    if top_k is not None:
        probability, ids = probability[:top_k], ids[:top_k]
    before = probability.cumsum(-1) - probability
    probability = probability * (before < top_p)
    return int(ids[torch.multinomial(probability, 1, generator=generator)])


def _generator(seed: int, draw: int) -> torch.Generator:
    key = hashlib.sha256(f"{seed}/sample/{draw}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
