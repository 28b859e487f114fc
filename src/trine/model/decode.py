"""Generation: token ids in, token ids out, for one prompt or several of different lengths at once.

A `Context` is what a model has read: it takes more tokens per row and gives the logits after them. What all prompts
begin with is read once and copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from trine.errors import BadInput
from trine.model.afmoe import Afmoe
from trine.model.cache import Cache
from trine.model.causal import CausalModel
from trine.model.native_step import native_step
from trine.model.prompt_cache import KeptPrompt, open_prompt, save_prompt
from trine.model.sampling import Sampling, choose
from trine.native.memory import kept_memory

_READ_TOKENS = 8192
"""Tokens of a prompt that pass the model at once, over all rows."""
_WORTH_SHARING = 8
"""A shorter common beginning is read with each prompt: copying it is another pass over the weights."""
Tokens = Sequence[int]
GREEDY = Sampling(temperature=0)


class Context(Protocol):
    """Rows of tokens that a model has read, ready to go on."""

    def read(self, rows: Sequence[Tokens]) -> Tensor:
        """Append tokens, at least one per row; fp32 logits [B, V] after each row's last, on the CPU."""
        ...

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        ...

    @property
    def uneven(self) -> bool:
        """Whether rows that hold something may go on by different lengths."""
        ...


class AfmoeContext:
    """Rows begin at slot 0 of the cache and end where they end."""

    uneven = True

    def __init__(self, model: Afmoe, capacity: int) -> None:
        self.model = model
        weight = model.output_weight
        self.cache = Cache(model.config, 1, capacity, weight.new_empty(0, dtype=model.compute_dtype or weight.dtype))
        self.step = native_step(model, self.cache)

    def read(self, rows: Sequence[Tokens]) -> Tensor:
        if self.step is not None and all(len(row) == 1 for row in rows):
            return self.step([row[0] for row in rows])
        device = self.model.output_weight.device
        last: list[Tensor | None] = [None] * len(rows)
        step = max(1, _READ_TOKENS // len(rows))
        for begin in range(0, max(map(len, rows)), step):
            pieces = [row[begin : begin + step] for row in rows]
            width = max(map(len, pieces))
            ids = None
            if any(len(piece) < width for piece in pieces):
                ids = torch.tensor([[0] * len(p) + [-1] * (width - len(p)) for p in pieces], device=device)
            tokens = torch.tensor([[*piece, *[0] * (width - len(piece))] for piece in pieces], device=device)
            hidden, _ = self.model.hidden(tokens, ids, self.cache)
            for row, piece in enumerate(pieces):
                if piece:
                    last[row] = hidden[row, len(piece) - 1]
        return _logits(self.model, torch.stack([one for one in last if one is not None]))

    def select(self, rows: list[int]) -> None:
        self.cache.select(rows)


class CausalContext:
    """A model of transformers with its own cache: rows end at the same column, shorter ones begin later."""

    def __init__(self, model: CausalModel) -> None:
        self.model = model
        self.cache = model.new_cache()
        self.mask_BS = torch.ones(1, 0, dtype=torch.long, device=model.output_weight.device)
        self.uneven = not model.sliding

    def read(self, rows: Sequence[Tokens]) -> Tensor:
        device, width = self.mask_BS.device, max(map(len, rows))
        tokens = torch.tensor([[*[0] * (width - len(row)), *row] for row in rows], device=device)
        real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        step = width if 0 in real else max(1, _READ_TOKENS // len(rows))
        hidden = torch.empty(0)
        for begin in range(0, width, step):
            self.mask_BS = torch.cat((self.mask_BS, real[:, begin : begin + step]), dim=1)
            hidden = self.model.extend(tokens[:, begin : begin + step], self.mask_BS, self.cache)
        return _logits(self.model, hidden[:, -1])

    def select(self, rows: list[int]) -> None:
        index = torch.tensor(rows, device=self.mask_BS.device)
        self.mask_BS = self.mask_BS[index]
        self.cache.batch_select_indices(index)


def _logits(model: Afmoe | CausalModel, last_BD: Tensor) -> Tensor:
    return (last_BD @ model.output_weight.to(last_BD.dtype).t()).float().cpu()


def new_context(model: Afmoe | CausalModel, capacity: int) -> Context:
    """An empty context of one row, with room for `capacity` tokens."""
    return CausalContext(model) if isinstance(model, CausalModel) else AfmoeContext(model, capacity)


def check_prompts(prompts: Sequence[Tokens], vocabulary: int) -> None:
    """Raise BadInput for an empty prompt, or for one with a token that the model does not know."""
    for i, prompt in enumerate(prompts):
        which = "the prompt" if len(prompts) == 1 else f"prompt {i + 1} of {len(prompts)}"
        if not prompt:
            raise BadInput(f"{which} is empty: give at least one token")
        bad = next((token for token in prompt if not 0 <= token < vocabulary), None)
        if bad is not None:
            raise BadInput(f"{which} holds token {bad}, the model knows 0 to {vocabulary - 1}")


def common_beginning(prompts: Sequence[Tokens]) -> int:
    """Tokens that all prompts begin with, leaving at least one of each."""
    low, high = min(map(list, prompts)), max(map(list, prompts))
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), limit)


def keep_prompt(path: Path, model: Afmoe | CausalModel, prompts: Sequence[Tokens]) -> KeptPrompt:
    """What all prompts begin with, read and written to a prompt cache, or taken from one. Raises BadInput."""
    check_prompts(prompts, model.output_weight.shape[0])
    if not isinstance(model, Afmoe):
        raise BadInput(f"a prompt cache is kept for AFMoE models only; this one is {model.config.model_type}")
    if path.exists():
        kept = open_prompt(path, model)
        kept.check(prompts)
        return kept
    shared = list(prompts[0][: common_beginning(prompts)])
    if not shared:
        raise BadInput(
            f"{path}: nothing to keep: a prompt cache holds what all prompts begin with, their last token apart"
        )
    context = AfmoeContext(model, len(shared))
    with torch.no_grad():
        context.read([shared])
    save_prompt(path, context.cache, shared, model)
    return open_prompt(path, model)


def read_prompts(context: Context, prompts: Sequence[Tokens], held: int) -> Tensor:
    """Logits [B, V] after the prompts, of which a context of one row holds the first `held` tokens."""
    shared = common_beginning(prompts)
    even = len({len(prompt) for prompt in prompts}) == 1
    if len(prompts) > 1 and shared - held >= _WORTH_SHARING and (context.uneven or even):
        context.read([prompts[0][held:shared]])
        held = shared
    context.select([0] * len(prompts))
    return context.read([prompt[held:] for prompt in prompts])


@torch.no_grad()
def generate(
    model: Afmoe | CausalModel,
    prompts: Sequence[Tokens],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    *,
    stop: frozenset[int] = frozenset(),
    choices: int | None = None,
    streams: Sequence[int] | None = None,
    ended: set[int] | None = None,
    kept: KeptPrompt | None = None,
) -> Iterator[dict[int, int]]:
    """Yield, step by step, the new token of each prompt (by its place in `prompts`) that goes on.

    A prompt ends after `max_new_tokens`, at a token of `stop`, which is not yielded, or when the caller adds it to
    `ended`. `choices` bounds the ids that may be drawn: the tokenizer's size where the model's vocabulary is padded
    beyond it. `streams` numbers the texts for their draws; default: their places. `kept` comes from `keep_prompt`.
    Raises BadInput for an empty or foreign prompt.
    """
    check_prompts(prompts, model.output_weight.shape[0])
    ended = set() if ended is None else ended
    numbers = range(len(prompts)) if streams is None else streams
    context = new_context(model, max(map(len, prompts)) + max_new_tokens)
    held = 0
    if kept is not None and isinstance(context, AfmoeContext):
        kept.check(prompts)
        held = kept.fill(context.cache)
    with kept_memory(model.output_weight.device):
        logits = read_prompts(context, prompts, held)
    live, histories = list(range(len(prompts))), [list(prompt) for prompt in prompts]
    for i in range(max_new_tokens):
        seen = [histories[row] for row in live]
        drawn = choose(logits[:, :choices], sampling, [numbers[row] for row in live], i, seen)
        fresh = {row: token for row, token in zip(live, drawn, strict=True) if token not in stop}
        for row, token in fresh.items():
            histories[row].append(token)
        if fresh:
            yield fresh
        going = [place for place, row in enumerate(live) if row in fresh and row not in ended]
        if not going or i + 1 == max_new_tokens:
            return
        if len(going) < len(live):
            context.select(going)
            live = [live[place] for place in going]
        logits = context.read([[fresh[row]] for row in live])
