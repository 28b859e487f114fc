"""What an evaluation asks of a model, in text: likelihoods of continuations, of whole texts, and continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from trine.progress import Progress, silent

if TYPE_CHECKING:
    from trine.model.sampling import Sampling


@dataclass(frozen=True)
class Likelihood:
    """Of a text behind another one."""

    loglik: float
    """In nats."""
    greedy: bool
    """Whether it is what greedy decoding would write."""


@dataclass(frozen=True)
class Rolling:
    """Of a whole text, token by token."""

    logp: np.ndarray
    """In nats, fp64 [tokens]."""
    ends: np.ndarray
    """Where in the text each token ends, in characters, int64 [tokens]."""


@dataclass(frozen=True)
class Prompt:
    """A text to go on from."""

    text: str
    most: int
    """New tokens, at most."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    sampling: Sampling | None = None
    """How tokens are drawn; None takes the likeliest."""


class Scorer(Protocol):
    """A language model as tasks see it. Answers are in the order of what was asked; `progress` counts them."""

    def likelihoods(
        self, pairs: Sequence[tuple[str, str]], progress: Progress = silent, what: str = ""
    ) -> list[Likelihood]:
        """log p(second | first) of each pair; the first may be empty."""
        ...

    def rolling(self, texts: Sequence[str], progress: Progress = silent, what: str = "") -> list[Rolling]:
        """log p of whole texts, none of which sees another."""
        ...

    def complete(self, prompts: Sequence[Prompt], progress: Progress = silent, what: str = "") -> list[str]:
        """The continuation of each prompt."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a text."""
        ...

    @property
    def longest(self) -> int:
        """Tokens that the model reads at once."""
        ...
