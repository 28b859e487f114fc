"""Log-probabilities of tokens given those before them: rows of token ids in, log p of their last tokens out.

Rows are read longest first, equal ones once, in batches of a bounded number of tokens. What all rows begin with, such
as the examples before each question, is read once and its keys and values are copied.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trine.model.afmoe import Afmoe
from trine.model.cache import Cache
from trine.model.decode import common_beginning
from trine.progress import Progress, silent

if TYPE_CHECKING:
    from trine.model.hf import LanguageModel

BATCH_TOKENS = 8192
"""Tokens that pass the model at once, padding included."""
_WORTH_SHARING = 32
_LOGIT_VALUES = 1 << 25
"""Logits that exist at one time."""


@dataclass(frozen=True)
class Row:
    """Token ids, of which the last `scored` are asked for; at least one comes before them."""

    tokens: list[int]
    scored: int


@dataclass(frozen=True)
class Scored:
    """Of a row's asked tokens."""

    logp: np.ndarray
    """In nats, fp64 [scored]."""
    greedy: bool
    """Whether each is the likeliest token at its place."""

    @property
    def total(self) -> float:
        return float(self.logp.sum())


@torch.no_grad()
def score_rows(
    model: LanguageModel,
    rows: Sequence[Row],
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = silent,
    what: str = "",
) -> list[Scored]:
    """What `model` thinks of each row's last tokens, in the rows' order. `progress` counts rows."""
    same: dict[tuple[int, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if not 0 < row.scored < len(row.tokens):
            raise ValueError(f"row {place}: {row.scored} of {len(row.tokens)} tokens are asked for")
        same.setdefault(tuple(row.tokens[:-1]), []).append(place)
    inputs = sorted(same, key=lambda one: (-len(one), one))
    shared = _shared(model, rows, inputs)
    prefix = _Prefix(model, inputs[0][:shared], len(inputs[0])) if shared else None
    found: list[Scored | None] = [None] * len(rows)
    done, first = 0, 0
    while first < len(inputs):
        width = len(inputs[first]) - shared
        batch = inputs[first : first + max(1, batch_tokens // width)]
        tails = [list(one[shared:]) for one in batch]
        hidden = prefix.read(tails) if prefix else read_padded(model, tails)
        for states, key in zip(hidden, batch, strict=True):
            for place in same[key]:
                found[place] = _score(model, states[len(states) - rows[place].scored :], rows[place])
                done += 1
        first += len(batch)
        progress(done, len(rows), what)
    return [one for one in found if one is not None]


def _shared(model: LanguageModel, rows: Sequence[Row], inputs: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all rows begin with and that are worth reading by themselves."""
    if len(inputs) < 2 or not (isinstance(model, Afmoe) or not model.sliding):
        return 0
    most = min(len(row.tokens) - 1 - row.scored for row in rows)
    shared = min(common_beginning(inputs), most)
    return shared if shared >= _WORTH_SHARING else 0


def read_padded(model: LanguageModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Final states [T, D] of each row; shorter ones are padded behind their end, where nothing looks."""
    device, width = model.output_weight.device, max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    ids = None
    if isinstance(model, Afmoe) and min(map(len, rows)) < width:
        ids = torch.tensor([[0] * len(row) + [-1] * (width - len(row)) for row in rows], device=device)
    hidden, _ = model.hidden(tokens, ids)
    return [states[: len(row)] for states, row in zip(hidden, rows, strict=True)]


class _Prefix:
    """A common beginning with its keys and values, ready to be gone on from by any number of rows."""

    def __init__(self, model: LanguageModel, tokens: Sequence[int], longest: int) -> None:
        """`longest` is the most tokens of a row, those of the beginning included."""
        self.model, self.length = model, len(tokens)
        self.cache: Any
        device = model.output_weight.device
        given = torch.tensor([list(tokens)], device=device)
        if isinstance(model, Afmoe):
            weight = model.output_weight
            like = weight.new_empty(0, dtype=model.compute_dtype or weight.dtype)
            self.cache = Cache(model.config, 1, longest, like)
            for piece in given.split(BATCH_TOKENS, dim=1):
                model.hidden(piece, None, self.cache)
        else:
            self.cache = model.new_cache()
            model.extend(given, torch.ones_like(given), self.cache)

    def read(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Final states [T, D] of the tokens of each row."""
        device, width = self.model.output_weight.device, max(map(len, rows))
        if isinstance(self.model, Afmoe):
            cache = _copy(self.cache)
            cache.select([0] * len(rows))
            tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
            ids = None
            if min(map(len, rows)) < width:
                ids = torch.tensor([[0] * len(row) + [-1] * (width - len(row)) for row in rows], device=device)
            hidden, _ = self.model.hidden(tokens, ids, cache)
            return [states[: len(row)] for states, row in zip(hidden, rows, strict=True)]
        cache = copy.deepcopy(self.cache)
        cache.batch_select_indices(torch.zeros(len(rows), dtype=torch.long, device=device))
        tokens = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows], device=device)
        real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        mask = torch.cat((torch.ones(len(rows), self.length, dtype=torch.long, device=device), real), dim=1)
        hidden = self.model.extend(tokens, mask, cache)
        return [states[width - len(row) :] for states, row in zip(hidden, rows, strict=True)]


def _copy(cache: Cache) -> Cache:
    """The same keys and values in an object of their own; `select` then puts new tensors in their place."""
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in cache.layers]
    return made


def _score(model: LanguageModel, states_ND: Tensor, row: Row) -> Scored:
    """`states_ND` are those before each asked token."""
    weight = model.output_weight.to(states_ND.dtype)
    targets_N = torch.tensor(row.tokens[-row.scored :], device=states_ND.device)
    step = max(16, _LOGIT_VALUES // weight.shape[0])
    logp, greedy = [], True
    for states, targets in zip(states_ND.split(step), targets_N.split(step), strict=True):
        logits = (states @ weight.mT).float()
        logp.append((logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(-1)).double().cpu())
        greedy = greedy and bool((logits.argmax(-1) == targets).all())
    return Scored(torch.cat(logp).numpy(), greedy)
