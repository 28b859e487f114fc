"""Text rules that belong to an origin, on lines as they stream by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

_HEADER_LINES = 400
"""A Project Gutenberg header ends within this many lines."""


def strip_gutenberg(lines: Iterable[str]) -> Iterator[str]:
    """The lines between Project Gutenberg's START and END marks; all of them where there is no START mark."""
    rest = iter(lines)
    head = list(islice(rest, _HEADER_LINES))
    begin = next((i + 1 for i, line in enumerate(head) if _mark(line, "START")), 0)
    for line in chain(head[begin:], rest):
        if _mark(line, "END"):
            return
        yield line


def _mark(line: str, word: str) -> bool:
    text = line.lstrip("*").lstrip().upper()
    return line.startswith("***") and text.startswith((f"{word} OF THE PROJECT", f"{word} OF THIS PROJECT"))
