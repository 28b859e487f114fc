"""Rows of cells → Markdown rows: what is one figure becomes one cell, and columns stand under each other.

A filing spreads `$ (1,234)` over three cells and leaves empty ones between columns for looks. Cells are intervals of
columns; a currency sign joins the cell after it, a bracket or per cent sign the cell before; intervals that overlap in
different rows are one column.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from trine.data.edgar.html import TABLE, TEXT, Block, Cell

_BEFORE = frozenset(
    ("$", "(", "$(", "($", "€", "£", "¥", "US$", "C$", "A$", "HK$", "R$", "NT$", "RMB", "€(", "£(", "¥(")
)
_AFTER = re.compile(r"[)\]%‰]{1,3}|\)\s?%|%\s?\)|pts?|bps|x|\(\d\)|\([a-z]\)")
_MARK = re.compile(r"[•·●▪■◦○–—\-*o§]|\(?(?:\d{1,2}|[a-zA-Z]|[ivxIVX]{1,4})[.)]{1,2}|\([a-z0-9]{1,3}\)\*?|\*+")
_MOST_COLUMNS = 120
Span = tuple[str, int, int, int, bool]
"""Text, first column, column after the last, byte it starts at, bold."""


def joined(row: list[Cell]) -> list[Span]:
    """The cells of a row that say something, parts of one figure put together."""
    found: list[Span] = []
    waiting: tuple[str, int, int] | None = None
    column = 0
    for text, span, at, bold in row:
        begin, column = column, column + span
        if not text:
            continue
        if text in _BEFORE:
            waiting = (waiting[0] + text if waiting else text, waiting[1] if waiting else begin, at)
        elif (
            found and not waiting and len(text) < 5 and found[-1][0][-1:] in "0123456789)—–-" and _AFTER.fullmatch(text)
        ):
            last = found[-1]
            found[-1] = (
                last[0] + (" " if text[0].isalpha() or text[0] == "(" else "") + text,
                last[1],
                column,
                *last[3:],
            )
        elif waiting:
            found.append((waiting[0] + text, waiting[1], column, waiting[2], bold))
            waiting = None
        else:
            found.append((text, begin, column, at, bold))
    if waiting:
        found.append((waiting[0], waiting[1], column, waiting[2], False))
    return found


def _columns(rows: list[list[Span]]) -> list[tuple[int, int]]:
    """Disjoint intervals, in order: narrow cells make the columns, wide ones (heads) only stretch one."""
    groups: list[tuple[int, int]] = []
    for begin, end in sorted({(one[1], one[2]) for row in rows for one in row}, key=lambda one: (one[1] - one[0], one)):
        at = bisect_left(groups, (begin, begin))
        if at and groups[at - 1][1] > begin:
            at -= 1
        stop = at
        while stop < len(groups) and groups[stop][0] < end and stop - at < 2:
            stop += 1
        if stop == at:
            groups.insert(at, (begin, end))
        elif stop == at + 1:
            groups[at] = (min(begin, groups[at][0]), max(end, groups[at][1]))
        if len(groups) > _MOST_COLUMNS:
            break
    return groups


def _escaped(text: str) -> str:
    return text.replace("|", "\\|") if "|" in text else text


def markdown(rows: Sequence[list[Cell]]) -> str:
    """The rows as a Markdown table, its first row the head."""
    spans = [one for one in (joined(row) for row in rows) if one]
    columns = _columns(spans)
    if len(columns) > _MOST_COLUMNS:
        return "\n".join("| " + " | ".join(_escaped(one[0]) for one in row) + " |" for row in spans)
    starts = [one[0] for one in columns]
    lines = []
    for row in spans:
        cells = [""] * len(columns)
        at = 0
        for text, begin, end, _, _ in row:
            column = max(0, bisect_left(starts, begin + 1) - 1)
            if columns[column][1] <= begin and column + 1 < len(columns) and starts[column + 1] < end:
                column += 1
            at = max(at, column)
            if at < len(cells) and not cells[at]:
                cells[at] = _escaped(text)
            else:
                place = min(at, len(cells) - 1)
                cells[place] = f"{cells[place]} {_escaped(text)}".strip()
        lines.append("| " + " | ".join(cells) + " |")
    lines.insert(1, "|" + " --- |" * len(columns))
    return "\n".join(lines)


def as_lines(block: Block) -> list[Block] | None:
    """A table that only places text on the page, as lines of text; None for one that is a table.

    That is: one cell in every row; one row of few cells; marks of a list, each with its text.
    """
    spans = [joined(row) for row in block.rows]
    most = max(len(row) for row in spans)
    marked = most == 2 and all(len(row) < 2 or _MARK.fullmatch(row[0][0]) for row in spans)
    wordy = most == 2 and len(spans) <= 2 and any(len(one[0]) > 200 for row in spans for one in row)
    if most > 1 and not marked and not wordy and not (len(spans) == 1 and most <= 4):
        return None
    return [line(row, (block.links or {}).get(number, "")) for number, row in enumerate(spans) if row]


def line(row: list[Span], link: str = "") -> Block:
    """A row as a line of text."""
    text = " ".join(one[0] for one in row)
    heavy = sum(len(one[0]) for one in row if one[4])
    return Block(TEXT, text, row[0][3], heavy * 2 > len(text), link=link)


def part_of(block: Block, begin: int, end: int) -> Block | None:
    """Rows `begin` to `end` of a table as a table; None where there are none."""
    rows = block.rows[begin:end]
    if not rows:
        return None
    at = next((cell[2] for row in rows for cell in row if cell[0]), block.start)
    links = {number - begin: link for number, link in (block.links or {}).items() if begin <= number < end}
    return Block(TABLE, "", at, rows=rows, links=links)
