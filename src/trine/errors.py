"""Errors a user is meant to read. Each says what, where, what was found, what was expected, how to fix it.

The exit codes are trine's contract with scripts: 0 done, 1 failed at work, 2 bad input and nothing
written, 3 a check said no.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class TrineError(Exception):
    """Work began and could not be finished (exit 1)."""

    exit_code = 1


class Diverged(TrineError):
    """A loss or a gradient is not finite: the run cannot go on with these settings (exit 1)."""


class BadInput(TrineError):
    """A config, a file or an option is wrong; nothing was written (exit 2)."""

    exit_code = 2


class CheckFailed(TrineError):
    """A verification ran and its answer is no (exit 3); `record` is what it found, for --json."""

    exit_code = 3

    def __init__(self, message: str, record: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.record = record or {}


def nearest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `choices`, or an empty string when none is close."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
