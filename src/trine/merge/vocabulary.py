"""One vocabulary for the tables of several models: which of its own rows, or of another's, each model has for a token.

A token's row of a model that lacks it is, in this order: what the recipe says; that of the only model that has it; the
base's; the mean of those that have it; zeros. Rows without a token are the mean of all others (Hewitt, 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from trine.errors import BadInput
from trine.merge.config import ModelReference
from trine.merge.dtypes import Array
from trine.merge.gather import Rows


@dataclass(frozen=True)
class Chosen:
    """What the recipe says about one token."""

    model: ModelReference | None
    """Whose row it is; None: zeros."""
    row: int
    forced: bool
    """Whether models that have the token get that row too."""


@dataclass
class Vocabulary:
    """The output's vocabulary, and the models' in its order."""

    texts: dict[int, str]
    """Tokens by their ids."""
    count: int
    """Rows of the output's tables."""
    own: dict[ModelReference, Array]
    """For each id, a model's own one; -1 where it has no such token."""
    chosen: dict[int, Chosen] = field(default_factory=dict)
    _kept: dict[object, list[Rows] | None] = field(default_factory=dict)

    def rows(
        self, name: str, models: Sequence[tuple[ModelReference, int]], base: ModelReference | None
    ) -> list[Rows] | None:
        """Where the rows of each model's table `name` come from; `models`: those that have it, with their rows.

        None when all tables are right as they are. Raises BadInput when a row that is asked for does not exist.
        """
        key = (tuple(models), base)
        if key not in self._kept:
            self._kept[key] = self._rows(name, models, base)
        return self._kept[key]

    def _rows(
        self, name: str, models: Sequence[tuple[ModelReference, int]], base: ModelReference | None
    ) -> list[Rows] | None:
        references = [model for model, _ in models]
        own = np.stack([self.own[model] for model in references], 1)
        for (model, count), most in zip(models, own.max(0, initial=-1).tolist(), strict=True):
            if most >= count:
                raise BadInput(f"{name}: {count} rows in '{model}', whose tokenizer has a token {most}")
        padded = np.ones(self.count, bool)
        padded[list(self.texts)] = False
        default = _default(own, references.index(base) if base in references else None)
        forced = np.zeros(self.count, bool)
        for number, one in self.chosen.items():
            forced[number] = one.forced
            default[number] = -1
            if one.model is not None and (one.forced or (own[number] < 0).any()):
                default[number, self._place(name, number, one, models)] = one.row
        if self._as_they_are(own, models, forced):
            return None
        return [Rows(_first(own, i, forced, default), padded) for i in range(len(models))]

    def _as_they_are(self, own: Array, models: Sequence[tuple[ModelReference, int]], forced: Array) -> bool:
        numbers = np.arange(self.count)[:, None]
        return (own == numbers).all() and not forced.any() and {count for _, count in models} == {self.count}

    def _place(self, name: str, number: int, one: Chosen, models: Sequence[tuple[ModelReference, int]]) -> int:
        """The number of the table that a chosen row comes from."""
        for i, (model, count) in enumerate(models):
            if model == one.model and one.row < count:
                return i
        raise BadInput(f"{name}: '{one.model}' has no row {one.row} of it for the token '{self.texts[number]}'")


def _default(own: Array, base: int | None) -> Array:
    """[rows, models]: the row for models that lack a token; several are a mean, none is zeros."""
    default = own.copy()
    if base is not None:
        lent = (own[:, base] >= 0) & ((own >= 0).sum(1) > 1)
        default[lent] = -1
        default[lent, base] = own[lent, base]
    return default


def _first(own: Array, model: int, forced: Array, default: Array) -> Array:
    """A model's own rows where it has them and they are not `forced` to be others."""
    places = default.copy()
    mine = (own[:, model] >= 0) & ~forced
    places[mine] = -1
    places[mine, model] = own[mine, model]
    return places.astype(np.int32)
