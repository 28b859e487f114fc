"""Filings of the 1990s, lines of characters with a few tags: `<PAGE>`, `<TABLE>`, `<S>`, `<C>`, `<CAPTION>`."""

from __future__ import annotations

import re

from trine.data.edgar.html import PAGE, TABLE, TEXT, Block, Cell, Page
from trine.data.edgar.tags import kept_spaces

_MARKUP = re.compile(
    r"<(?:/?(?:html|body|div|p|br|font|td|tr|span|b|center|a|hr|h[1-6]))\b[^<>]{0,2000}>", re.IGNORECASE
)
_TAG = re.compile(r"</?(?:PAGE|TABLE|S|C|CAPTION|FN|TEXT|F\d{1,2}|MULTIPLIER|ARTICLE|LEGEND|R|PRE)>", re.IGNORECASE)
_GAP = re.compile(r" {2,}|\t+| ?\.{4,} ?|(?: \.){3,} ?")
_RULE = re.compile(r"[\s\-=_*.~|+]+")


def is_plain(data: bytes) -> bool:
    """Whether a document is text without HTML: at most a handful of tags in its first half megabyte."""
    head = data[: 1 << 19].decode("latin-1")
    return sum(1 for _, one in zip(range(12), _MARKUP.finditer(head), strict=False)) < 2 and "<html" not in head.lower()


def read_plain(data: bytes) -> Page:
    """The document as blocks, one a line, an empty one for empty lines; `<TABLE>`s as tables by character columns."""
    text = data.replace(b"\0", b" ").decode("latin-1")
    blocks: list[Block] = []
    rows: list[list[Cell]] = []
    table = False
    at = 0

    def end_table() -> None:
        if rows:
            blocks.append(Block(TABLE, "", next(cell[2] for cell in rows[0] if cell[0]), rows=rows.copy()))
            rows.clear()

    for line in text.split("\n"):
        start, at = at, at + len(line) + 1
        if "<" in line:
            upper = line.upper()
            if "<PAGE>" in upper or "</PAGE>" in upper:
                end_table()
                blocks.append(Block(PAGE, "", start))
            if "</TABLE>" in upper:
                end_table()
                table = False
            elif "<TABLE>" in upper:
                table = True
            line = _TAG.sub(lambda one: " " * len(one[0]), line)
        shown = kept_spaces(line.replace("\f", " "))
        if "\f" in line:
            blocks.append(Block(PAGE, "", start))
        if not shown.strip() or _RULE.fullmatch(shown):
            if not table and blocks and blocks[-1].text:
                blocks.append(Block(TEXT, "", start, soft=True))
        elif table:
            rows.append(_cells(shown, start))
        else:
            blocks.append(Block(TEXT, shown, start, soft=True))
    end_table()
    return Page(blocks, {}, [], [])


def _cells(line: str, start: int) -> list[Cell]:
    """A line of a table, cut where two spaces or a row of dots stand; its widths in characters."""
    cells: list[Cell] = []
    done = 0
    for gap in _GAP.finditer(line):
        if gap.start() > done:
            cells.append((line[done : gap.start()].strip(), gap.start() - done, start + done, False))
        cells.append(("", gap.end() - gap.start(), start + gap.start(), False))
        done = gap.end()
    if done < len(line):
        cells.append((line[done:].strip(), len(line) - done, start + done, False))
    return [one for one in cells if one[1]]
