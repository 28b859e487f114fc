"""Tables whose rows come from rows of several models' tables: one vocabulary for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from trine.merge.dtypes import Array

NOTHING, MEAN, PADDING = -1, -2, -3
"""Kinds of runs that are no rows of one table: zeros, means of several tables' rows, the mean of all other rows."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Where each row of a table comes from."""

    places: Array
    """[rows, tables] int32: which row of each table goes into the row's mean; -1: none of it."""
    padded: Array
    """[rows] bool: rows that are the mean of all that are not padded."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def count(self) -> int:
        """Rows of the result."""
        return len(self.places)

    @cached_property
    def digest(self) -> str:
        """A value that differs where the rows differ."""
        found = hashlib.sha256(np.ascontiguousarray(self.places).data)
        found.update(np.ascontiguousarray(self.padded).data)
        return found.hexdigest()

    @cached_property
    def used(self) -> list[int]:
        """Numbers of the tables that any row comes from."""
        return np.flatnonzero((self.places >= 0).any(0)).tolist()

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """(first row, kind, shift): rows up to the next run are of this kind.

        A kind from 0 on is a table, whose row `row + shift` is meant. Each row that is a mean is a run.
        """
        given = self.places >= 0
        several = given.sum(1)
        kinds = np.where(several == 1, given.argmax(1), np.where(several > 1, MEAN, NOTHING))
        kinds = np.where(self.padded, PADDING, kinds)
        numbers = np.arange(self.count)
        shifts = np.where(kinds >= 0, self.places.max(1, initial=-1) - numbers, np.where(kinds == MEAN, numbers, 0))
        new = np.flatnonzero((np.diff(kinds) != 0) | (np.diff(shifts) != 0)) + 1
        starts = [0, *new.tolist()] if self.count else []
        return [(start, int(kinds[start]), int(shifts[start])) for start in starts]


@dataclass(frozen=True, eq=False)
class Stack(Rows):
    """Whole tables one below the other."""

    heights: tuple[int, ...] = ()
    """Rows of each."""

    @property
    def count(self) -> int:
        return sum(self.heights)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.heights).encode()).hexdigest()

    @cached_property
    def used(self) -> list[int]:
        return list(range(len(self.heights)))

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        starts = [0, *accumulate(self.heights)]
        return [(start, i, -start) for i, start in enumerate(starts[:-1])]


def one_below_the_other(heights: Sequence[int]) -> Stack:
    """All rows of tables of those heights."""
    return Stack(np.empty((0, len(heights)), np.int32), np.empty(0, bool), tuple(heights))


def rows_in_order(order: Sequence[int]) -> Rows:
    """The rows of one table in another order."""
    return Rows(np.array(order, np.int32)[:, None], np.zeros(len(order), bool))


@dataclass(frozen=True)
class Gather:
    """A table made of rows of tables; `tables` are tensors of a plan."""

    tables: tuple[Any, ...]
    rows: Rows
    shape: tuple[int, ...] | None = None
    """Of the result, where it is not rows of the tables' width."""
