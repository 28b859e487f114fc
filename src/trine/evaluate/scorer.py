"""What a Hugging Face folder answers to an evaluation: AFMoE, or a dense causal model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trine.data.tokenizer import open_tokenizer, vocabulary_size
from trine.errors import BadInput
from trine.evaluate.asking import Likelihood, Prompt, Rolling
from trine.evaluate.reading import BATCH_TOKENS, Row, Scored, score_rows
from trine.model.decode import GREEDY, generate
from trine.model.hf import load_model
from trine.model.hf_config import end_tokens
from trine.model.prompt_cache import fingerprint
from trine.model.sampling import Sampling
from trine.native.memory import kept_memory
from trine.progress import Progress, silent

LONGEST = 8192
"""Tokens of a text that are read at once when the model could read more and nothing else is asked for."""


class ModelScorer:
    """A model folder, its tokenizer, and a bound on what is read at once."""

    def __init__(
        self,
        folder: Path,
        dtype: str = "float32",
        device: str = "cpu",
        longest: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        """Raises BadInput when model or tokenizer cannot be read, or `longest` is beyond the model's positions."""
        self.folder, self.batch_tokens = folder, batch_tokens
        self.opened = open_tokenizer(folder, exact_bytes=False)
        self.tokenizer = self.opened.tokenizer
        self.model = load_model(folder, dtype, device)
        self.longest = _longest(self.model.config, longest, folder)
        prefix = self.opened.bos if self.opened.bos is not None else self.opened.eos
        if prefix is None:
            raise BadInput(
                f"{folder}: its tokenizer has no token that begins or ends a text, so no first token can be scored"
            )
        self.prefix = prefix
        self.stop = frozenset(end_tokens(folder) | ({self.opened.eos} if self.opened.eos is not None else set()))

    def fingerprint(self) -> str:
        """64 hex digits of the model's weights and type."""
        return fingerprint(self.model)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Token ids; `special` puts before it what the tokenizer puts before a text that does not begin so itself."""
        begins = self.tokenizer.id_to_token(self.prefix)
        special = special and not (begins and text.startswith(begins))
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    def count(self, text: str) -> int:
        return len(self.encode(text, special=False))

    def pair(self, context: str, continuation: str) -> Row:
        """Both as one text's tokens, cut where the context's end; spaces between them belong to the continuation."""
        if not context:
            tail = self.encode(continuation, special=False)
            if not tail:
                raise BadInput("a continuation without a token has no likelihood")
            whole = tail if tail[0] == self.prefix and len(tail) > 1 else [self.prefix, *tail]
            return Row(whole, len(whole) - 1)
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        before, whole = self.encode(bare), self.encode(bare + continuation)
        scored = len(whole) - len(before)
        if scored <= 0 or not before:
            tail = self.encode(continuation, special=False)
            whole, scored = [*(before or [self.prefix]), *tail], len(tail)
        return Row(whole, scored)

    def score(self, rows: Sequence[Row], progress: Progress = silent, what: str = "") -> list[Scored]:
        """Rows too long for the model lose tokens at their beginning. Raises BadInput where asked tokens would go."""
        cut = []
        for row in rows:
            if row.scored > self.longest:
                raise BadInput(
                    f"{self.folder}: {row.scored} tokens are asked for at once, the model reads {self.longest}"
                )
            cut.append(Row(row.tokens[-(self.longest + 1) :], row.scored))
        with kept_memory(self.model.output_weight.device):
            return score_rows(self.model, cut, self.batch_tokens, progress, what)

    def likelihoods(
        self, pairs: Sequence[tuple[str, str]], progress: Progress = silent, what: str = ""
    ) -> list[Likelihood]:
        scored = self.score([self.pair(*one) for one in pairs], progress, what)
        return [Likelihood(one.total, one.greedy) for one in scored]

    def rolling(self, texts: Sequence[str], progress: Progress = silent, what: str = "") -> list[Rolling]:
        """Each token is predicted once; a window begins with one token of the one before, the first with the token
        that begins a text, which itself is not scored."""
        encoded = [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
        windows = [windows_of(one.ids, self.prefix, self.longest) for one in encoded]
        scored = iter(self.score([row for rows in windows for row in rows], progress, what))
        found = []
        for one, rows in zip(encoded, windows, strict=True):
            parts = [next(scored).logp for _ in rows]
            ends = np.array([end for _, end in one.offsets], dtype=np.int64)
            found.append(Rolling(np.concatenate(parts) if parts else np.zeros(0), ends))
        return found

    def complete(self, prompts: Sequence[Prompt], progress: Progress = silent, what: str = "") -> list[str]:
        """Raises BadInput for a prompt that leaves no room: more new tokens than the model reads."""
        tokens = [self._prompt(one) for one in prompts]
        alike = {(one.most, one.stop, one.sampling) for one in prompts}
        texts, done = [""] * len(prompts), 0
        for most, stop, sampling in sorted(alike, key=repr):
            places = [
                i for i, one in enumerate(prompts) if (one.most, one.stop, one.sampling) == (most, stop, sampling)
            ]
            places.sort(key=lambda i: (-len(tokens[i]), tokens[i]))
            first = 0
            while first < len(places):
                rows = max(1, self.batch_tokens // (len(tokens[places[first]]) + most))
                batch = places[first : first + min(rows, 64)]
                for i, text in zip(
                    batch, self._complete([tokens[i] for i in batch], batch, most, stop, sampling), strict=True
                ):
                    texts[i] = text
                first, done = first + len(batch), done + len(batch)
                progress(done, len(prompts), what)
        return texts

    def _prompt(self, prompt: Prompt) -> list[int]:
        room = self.longest - prompt.most
        if room < 1:
            raise BadInput(f"{self.folder}: {prompt.most} new tokens leave no room, the model reads {self.longest}")
        return self.encode(prompt.text)[-room:] or [self.prefix]

    def _complete(
        self, rows: list[list[int]], numbers: list[int], most: int, stop: tuple[str, ...], sampling: Sampling | None
    ) -> list[str]:
        made: list[list[int]] = [[] for _ in rows]
        ended: set[int] = set()
        steps = generate(
            self.model,
            rows,
            most,
            sampling or GREEDY,
            stop=self.stop,
            choices=vocabulary_size(self.tokenizer),
            streams=numbers,
            ended=ended,
        )
        for fresh in steps:
            for i, token in fresh.items():
                made[i].append(token)
                if stop and any(one in self.tokenizer.decode(made[i]) for one in stop):
                    ended.add(i)
        return [_until(self.tokenizer.decode(tokens), stop) for tokens in made]


def _until(text: str, stop: Sequence[str]) -> str:
    for one in stop:
        if one:
            text = text.split(one)[0]
    return text


def windows_of(tokens: Sequence[int], prefix: int, longest: int) -> list[Row]:
    """Rows that predict each token once, with `longest` tokens read in each but a shorter text's."""
    rows, first = [], 0
    while first < len(tokens):
        end = min(len(tokens), first + longest)
        begin = max(0, end - longest - 1) if first else 0
        given = list(tokens[begin:end]) if first else [prefix, *tokens[:end]]
        rows.append(Row(given, end - first))
        first = end
    return rows


def _longest(config: object, wanted: int | None, folder: Path) -> int:
    able = next(
        (n for name in ("max_position_embeddings", "n_positions", "n_ctx") if (n := getattr(config, name, None))), 2048
    )
    if wanted is None:
        return min(able, LONGEST)
    if not 2 <= wanted <= able:
        raise BadInput(f"{folder}: --max-length {wanted}: expected 2 to {able}, the positions that the model has")
    return wanted
