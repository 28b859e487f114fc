"""What stands on every page and says nothing: page numbers and running heads, found at the ends of pages.

A number is a page number when it stands next to a page's end and goes on from the number of a page before or after; a
running head is a line that stands there again and again. Nothing inside a table of several rows is touched.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from trine.data.edgar.headings import heading_of
from trine.data.edgar.html import PAGE, TEXT, Block

PAGE_NUMBER, RUNNING_HEAD, CONTENTS, HIDDEN = "page number", "running head", "contents row", "hidden XBRL"
PART = "part heading"
_NUMBER = re.compile(
    r"[\s\-–—|•]*(?:page\s*)?(?:([A-Z]{1,3}\s?-\s?)?(\d{1,4})|([ivxl]{1,7}))(?:\s*(?:of|/)\s*\d{1,4})?[\s\-–—|•.]*",
    re.IGNORECASE,
)
_LONE = re.compile(r"[-–— ]*\d{1,3}[-–— ]*")
_ENDS = re.compile(r"^(?:page )?\d{1,3}\b|\b(?:[a-z]{1,2}-)?\d{1,3}$")
_UNITS = re.compile(
    r"\(.*\b(?:million|thousand|except|unaudited|continued|dollars)|unaudited|in (?:million|thousand)", re.I
)
_FIGURE = re.compile(r"\d[\d,]*(?:\.\d+)?")
MOST_FURNITURE = 0.0125
"""Of a document's numbers, how many may be removed as furniture; what is beyond is set apart."""
_NEAR = 4
_LONGEST_HEAD = 160
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50}


@dataclass(slots=True)
class Removed:
    """Something of the document that is not in its items."""

    kind: str
    text: str
    byte_start: int


@dataclass(slots=True)
class Trimmed:
    """Blocks without furniture, and what was found."""

    blocks: list[Block]
    removed: list[Removed]
    repeated: set[int]
    """Bytes at which headings of items stand as running heads; all but the first of each are furniture."""
    pages: dict[int, int]
    """Byte of a page's number → that number."""


def take_furniture(blocks: list[Block]) -> Trimmed:
    """Tell furniture from text."""
    breaks = [number for number, block in enumerate(blocks) if block.kind == PAGE]
    if len(breaks) < 3:
        breaks = sorted({*breaks, *_counting_lines(blocks)})
    edges = [_edge(blocks, at) for at in breaks]
    gone: dict[int, str] = {}
    pages: dict[int, int] = {}
    _find_numbers(blocks, edges, gone, pages)
    repeated = _find_heads(blocks, edges, gone)
    kept = [block for number, block in enumerate(blocks) if number not in gone and block.kind != PAGE]
    removed = [Removed(kind, blocks[number].text, blocks[number].start) for number, kind in sorted(gone.items())]
    numbers = {blocks[number].start: page for number, page in sorted(pages.items())}
    return Trimmed(kept, removed, {blocks[number].start for number in repeated}, numbers)


def _counting_lines(blocks: list[Block]) -> list[int]:
    """Where no page ends are marked: lines that are a number each, one more than the one before, five or more."""
    lone = [(n, int(b.text.strip(" -–—"))) for n, b in enumerate(blocks) if b.kind == TEXT and _LONE.fullmatch(b.text)]
    best: list[int] = []
    runs: dict[int, list[int]] = {}
    for number, value in lone:
        run = [*runs.pop(value - 1, []), number] if value - 1 in runs else [number]
        if len(run) > len(runs.get(value, [])):
            runs[value] = run
        best = max(best, run, key=len)
    return best if len(best) >= 5 else []


def _edge(blocks: list[Block], at: int) -> list[int]:
    """Lines next to a page's end, nearest first, those before it and those after it by turns; tables end the search."""
    found: list[list[int]] = [[], []]
    for side, step in enumerate((-1, 1)):
        number = at if blocks[at].kind != PAGE and step < 0 else at + step
        looked = 0
        while 0 <= number < len(blocks) and len(found[side]) < _NEAR and looked < 4 * _NEAR:
            block = blocks[number]
            if block.kind == TEXT and block.text.strip():
                if len(block.text) > _LONGEST_HEAD:
                    break
                found[side].append(number)
            elif block.kind != TEXT:
                break
            number, looked = number + step, looked + 1
    return [*found[0], -1, *found[1]]


def _value(text: str) -> tuple[str, int] | None:
    """Prefix and number of a line that is a page number."""
    found = _NUMBER.fullmatch(text) if len(text) < 24 else None
    if found is None:
        return None
    if found[2]:
        return (found[1] or "").replace(" ", "").upper(), int(found[2])
    roman = [_ROMAN[one] for one in found[3].lower()]
    return "roman", sum(-a if a < b else a for a, b in zip(roman, [*roman[1:], 0], strict=True))


def _find_numbers(blocks: list[Block], edges: list[list[int]], gone: dict[int, str], pages: dict[int, int]) -> None:
    """Page numbers: of the kinds that count up from page to page, each that fits a neighbour."""
    seen: list[tuple[int, int, str, int]] = []
    for page, edge in enumerate(edges):
        for number in edge:
            value = _value(blocks[number].text) if number >= 0 else None
            if value:
                seen.append((page, number, *value))
    values = {(page, prefix, value) for page, _, prefix, value in seen}
    for page, number, prefix, value in seen:
        near = any((page + d, prefix, value + s) in values for d in (1, 2) for s in (1, 2) if s <= d)
        near = near or any((page - d, prefix, value - s) in values for d in (1, 2) for s in (1, 2) if s <= d)
        if near or (len(edges) < 3 and value <= 3):
            gone[number] = PAGE_NUMBER
            pages.setdefault(number, value if prefix in ("", "roman") else -value)


def _key(text: str) -> str:
    return _ENDS.sub("#", " ".join(text.lower().split()))


def _find_heads(blocks: list[Block], edges: list[list[int]], gone: dict[int, str]) -> set[int]:
    """Running heads: the same line, numbers aside, at three page ends and a tenth of all, with nothing between.

    Returns those that are headings of items: the first of each may be the heading itself.
    """
    counts = Counter(key for edge in edges for key in {_key(blocks[number].text) for number in edge if number >= 0})
    enough = max(3, len(edges) // 10)
    repeated: set[int] = set()
    for edge in edges:
        middle = edge.index(-1)
        for side in (edge[:middle], edge[middle + 1 :]):
            for number in side:
                if number in gone:
                    continue
                text = blocks[number].text
                key = _key(text)
                heading = heading_of(text)
                if (
                    counts[key] < (2 if heading else enough)
                    or _UNITS.search(key)
                    or not any(one.isalpha() for one in key)
                ):
                    break
                if heading:
                    repeated.add(number)
                else:
                    gone[number] = RUNNING_HEAD
    return repeated


def set_apart(removed: list[Removed], texts: list[str]) -> tuple[list[Removed], list[Removed]]:
    """Furniture that may go, and furniture that would take more than `MOST_FURNITURE` of the document's numbers.

    Page numbers and running heads go first, then rows of contents, in the order of the document; what bears no number
    and what was hidden goes always. `texts` are the items'.
    """
    shown = [one for one in removed if one.kind in (PAGE_NUMBER, RUNNING_HEAD, CONTENTS)]
    counts = {id(one): len(_FIGURE.findall(one.text)) for one in shown}
    allowed = int(MOST_FURNITURE * (sum(counts.values()) + sum(len(_FIGURE.findall(text)) for text in texts)))
    apart = set()
    for one in sorted(shown, key=lambda one: (one.kind == CONTENTS, one.byte_start)):
        count = counts[id(one)]
        if count > allowed:
            apart.add(id(one))
        else:
            allowed -= count
    return [one for one in removed if id(one) not in apart], [one for one in removed if id(one) in apart]
