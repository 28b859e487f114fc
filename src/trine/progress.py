"""How a stage tells its caller how far it is: one function call, no terminal code in the stages."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """`progress(done, total, what)`: `total` is None while unknown; `what` names the work and its unit."""

    def __call__(self, done: int, total: int | None, what: str) -> None: ...


def silent(done: int, total: int | None, what: str) -> None:
    """The progress that shows nothing."""
