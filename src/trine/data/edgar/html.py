"""HTML of filings → blocks (lines of text, tables, page ends), each with its place in the file.

A reader of its own instead of a tree: one split of the text at its tags, then one pass over the pieces. Trees cost a
node for every `<span>` and forget where in the file a node stood; here a tag is looked up in a table of what it does
(the same tag stands hundreds of times in a filing) and most do nothing. Nothing recurses and no pattern looks beyond
the next `<`, so time is linear in any input. Hidden are `display:none`, `ix:header`, scripts, styles and comments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trine.data.edgar import tags
from trine.data.edgar.tags import SHORT, TAGS, plain

TEXT, TABLE, PAGE = "text", "table", "page"
Cell = tuple[str, int, int, bool]
"""Text, columns it spans, byte it starts at, whether most of it is bold."""


@dataclass(slots=True)
class Block:
    """A line of text, a table, or the end of a page."""

    kind: str
    text: str
    start: int
    bold: bool = False
    soft: bool = False
    """Begins after a line break, not with a paragraph."""
    link: str = ""
    """The place in this document that a link in it leads to."""
    rows: Sequence[list[Cell]] = ()
    links: Mapping[int, str] | None = None
    """Of a table: row to the place that a link in it leads to."""


@dataclass(slots=True)
class Page:
    """A document as blocks, and what was left out of it."""

    blocks: list[Block]
    anchors: dict[str, int]
    """Name of a place to its byte."""
    hidden: list[tuple[str, int, int]]
    """What was not shown: kind, first byte, byte after the last."""
    warnings: list[str]


_SPLIT = re.compile(r"(<[a-zA-Z/!?][^<>]*>)")
_QUOTED = re.compile(r'="[^"<>]*>[^"<]*"[^<>"]*>')
_INLINE_BOLD = ~(tags.BLOCK_BOLD | tags.HEADING)
_CELL_LINES = 8
"""A cell with more lines than these holds a page, not an entry of a table."""


def read_html(data: bytes) -> Page:
    """The document as blocks. Raises nothing: what is broken is read as far as it can be, with a warning."""
    text = without_comments(data.replace(b"\0", b" ").decode("latin-1"))
    reader = _Reader(text)
    reader.read()
    if reader.odd:
        reader = _Reader(_QUOTED.sub(lambda one: one[0][:-1].replace(">", "_") + ">", text))
        reader.read()
    if reader.unclosed:
        shown = _Reader(text, set(reader.unclosed))
        shown.read()
        shown.warnings.append("a hidden element never ends: what follows it is taken as shown")
        reader = shown
    return Page(reader.blocks, reader.anchors, reader.hidden, reader.warnings)


def without_comments(text: str) -> str:
    """Comments become one tag each, of the same length; one that never ends is a tag of its first four characters."""
    at = text.find("<!--")
    if at < 0:
        return text
    pieces, done, ends = [], 0, True
    while at >= 0:
        end = text.find("-->", at + 4) if ends else -1
        ends = end >= 0
        end = end + 3 if ends else at + 4
        pieces += (text[done:at], "<!", "-" * (end - at - 3), ">")
        done = end
        at = text.find("<!--", end)
    return "".join([*pieces, text[done:]])


class _Reader:
    """One pass over a document."""

    def __init__(self, text: str, shown: set[int] | None = None) -> None:
        self.pieces = _SPLIT.split(text)
        self.size = len(text)
        self.shown = shown or set()
        self.blocks: list[Block] = []
        self.anchors: dict[str, int] = {}
        self.hidden: list[tuple[str, int, int]] = []
        self.warnings: list[str] = []
        self.unclosed: list[int] = []
        self.odd = False
        self.parts: list[str] = []
        self.begin = self.heavy = self.bold = self.pre = 0
        self.soft = False
        self.link = ""
        self.depth = 0
        self.rows: list[list[Cell]] = []
        self.row: list[Cell] = []
        self.links: dict[int, str] = {}
        self.cell: list[Block] | None = None
        self.cell_about = (1, 0)
        self.table_begin = 0

    def read(self) -> None:
        """Fill `blocks`, `anchors` and `hidden`."""
        position, hiding, nested = 0, "", 0
        open_tag = close_tag = ""
        hidden_at = 0
        parts, known = self.parts, TAGS
        if len(known) > tags.MOST_TAGS:
            known.clear()
        pieces = self.pieces
        pieces.append("")
        for text, tag in zip(pieces[0::2], pieces[1::2], strict=True):
            if hiding:
                position += len(text) + len(tag)
                lower = tag[: len(close_tag)].lower()
                if lower.startswith(open_tag) and tag[len(open_tag) : len(open_tag) + 1] in " >\n\t\r":
                    nested += 0 if tag.endswith("/>") or hiding in tags.RAW else 1
                elif lower == close_tag:
                    nested -= 1
                    if nested == 0:
                        self.hidden.append((hiding, hidden_at, position))
                        hiding = ""
                continue
            if text:
                if not parts:
                    self.begin = position
                parts.append(text)
                if self.bold:
                    self.heavy += len(text)
                position += len(text)
            steps = known[tag]
            if isinstance(steps, int):
                self.bold &= steps
            else:
                for step, about in steps:
                    if step == tags.HIDE:
                        if position not in self.shown:
                            hiding, hidden_at, nested = str(about), position, 1
                            open_tag, close_tag = "<" + hiding, "</" + hiding
                    else:
                        _DO[step](self, about, position)
            position += len(tag)
        if hiding:
            self.unclosed.append(hidden_at)
        self.flush()
        while self.depth:
            self.table_end(None, self.size)

    def flush(self) -> None:
        """End the line of text that is being read."""
        parts = self.parts
        if not parts:
            return
        raw = parts[0] if len(parts) == 1 else "".join(parts)
        heavy, self.heavy = self.heavy, 0
        parts.clear()
        if self.pre and "\n" in raw:
            self._flush_lines(raw)
            return
        text = SHORT[raw] if len(raw) < 16 else plain(raw)
        if text:
            self._put(Block(TEXT, text, self.begin, heavy * 2 > len(raw), self.soft, self.link))
            self.link = ""

    def _put(self, block: Block) -> None:
        if self.cell is None:
            self.blocks.append(block)
        else:
            self.cell.append(block)

    def _flush_lines(self, raw: str) -> None:
        """Preformatted text: each line is a block, its spaces kept."""
        at = self.begin
        for line in raw.split("\n"):
            text = tags.kept_spaces(line)
            if text or self.blocks:
                self._put(Block(TEXT, text, at, soft=True))
            at += len(line) + 1

    def block(self, about: int, _: int) -> None:
        if self.parts:
            self.flush()
        self.soft = False
        self.bold = self.bold & _INLINE_BOLD | about

    def line_break(self, _: object, position: int) -> None:
        if self.pre:
            self.parts.append("\n")
            return
        self.flush()
        self.soft = True

    def page_break(self, _: object, position: int) -> None:
        self.flush()
        self._put(Block(PAGE, "", position))

    def anchor(self, name: str, position: int) -> None:
        self.anchors.setdefault(name, position)

    def set_link(self, target: str, _: int) -> None:
        self.link = self.link or target

    def superscript(self, _: object, position: int) -> None:
        if self.parts and self.parts[-1][-1:].isdecimal():
            self.parts.append(" ")

    def bold_on(self, bit: int, _: int) -> None:
        self.bold |= bit

    def pre_open(self, _: object, position: int) -> None:
        self.block(0, position)
        self.pre = 1

    def pre_end(self, _: object, position: int) -> None:
        self.block(0, position)
        self.pre = 0

    def odd_tag(self, _: object, position: int) -> None:
        self.odd = True

    def table_open(self, _: object, position: int) -> None:
        self.block(0, position)
        if self.depth:
            self._end_cell()
            self._emit()
        self.depth += 1
        self.table_begin = position
        self.cell = None

    def row_tag(self, _: object, position: int) -> None:
        self.block(0, position)
        if self.depth:
            self._end_cell()
            self._end_row()

    def cell_open(self, about: tuple[int, bool], position: int) -> None:
        if self.parts:
            self.flush()
        self.soft = False
        self.bold = self.bold & _INLINE_BOLD | (tags.BLOCK_BOLD if about[1] else 0)
        if self.depth:
            if self.cell is not None:
                self._end_cell()
            self.cell, self.cell_about = [], (about[0], position)

    def cell_end(self, _: object, position: int) -> None:
        if self.parts:
            self.flush()
        self.soft = False
        self.bold &= _INLINE_BOLD
        if self.cell is not None:
            self._end_cell()

    def table_end(self, _: object, position: int) -> None:
        self.block(0, position)
        if self.depth:
            self._end_cell()
            self._emit()
            self.depth -= 1
            self.table_begin = position
            self.cell, self.cell_about = ([], (1, position)) if self.depth else (None, self.cell_about)

    def _end_cell(self) -> None:
        lines, self.cell = self.cell, None
        if lines is None:
            return
        span, at = self.cell_about
        if not lines:
            self.row.append(("", span, at, False))
            return
        if len(lines) == 1 and lines[0].kind == TEXT:
            only = lines[0]
            self.row.append((only.text, span, only.start, only.bold))
            if only.link:
                self.links.setdefault(len(self.rows), only.link)
        elif len(lines) > _CELL_LINES:
            self._emit()
            self.blocks += lines
        else:
            shown = [one for one in lines if one.kind == TEXT]
            text = " ".join(one.text for one in shown)
            self.row.append(
                (text, span, shown[0].start if shown else at, bool(shown) and all(one.bold for one in shown))
            )
            for one in shown:
                if one.link:
                    self.links.setdefault(len(self.rows), one.link)
            if len(shown) < len(lines):
                self.blocks.append(Block(PAGE, "", at))

    def _end_row(self) -> None:
        if self.row:
            self.rows.append(self.row)
            self.row = []

    def _emit(self) -> None:
        """What the table holds so far, as a block."""
        self._end_row()
        said = [number for number, row in enumerate(self.rows) if any(cell[0] for cell in row)]
        if said:
            rows = [self.rows[number] for number in said]
            begin = next(cell[2] for cell in rows[0] if cell[0])
            links = {at: self.links[number] for at, number in enumerate(said) if number in self.links}
            self.blocks.append(Block(TABLE, "", begin, rows=rows, links=links))
        self.rows, self.links = [], {}


_DO = {
    tags.CELL: _Reader.cell_open,
    tags.CELL_END: _Reader.cell_end,
    tags.BLOCK: _Reader.block,
    tags.BR: _Reader.line_break,
    tags.ROW: _Reader.row_tag,
    tags.TABLE_OPEN: _Reader.table_open,
    tags.TABLE_END: _Reader.table_end,
    tags.LINK: _Reader.set_link,
    tags.BREAK: _Reader.page_break,
    tags.PRE: _Reader.pre_open,
    tags.PRE_END: _Reader.pre_end,
    tags.ANCHOR: _Reader.anchor,
    tags.SUP: _Reader.superscript,
    tags.ON: _Reader.bold_on,
    tags.ODD: _Reader.odd_tag,
}
