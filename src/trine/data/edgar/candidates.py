"""Lines that may be the heading of an item, each with the items it may be and how much speaks for it."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass

from trine.data.edgar.contents import Contents
from trine.data.edgar.forms import Known, likeness, words
from trine.data.edgar.headings import heading_of, part_of_line
from trine.data.edgar.html import TEXT, Block

_OPEN_END = re.compile(
    r"(?:\b(?:in|see|and|or|of|under|to|with|this|our|the|part|by|from|at)|[,“\"(—–-])\s*$", re.IGNORECASE
)
_PROSE = re.compile(
    r"[\s,”\"')]*(?:(?:of|in|to|above|below|and|or|herein|contained|included|set forth|for|is|are|was|as|has|"
    r"have|which|that|under|below|hereof|should|provides|describes|discusses|may|we|on)\b|and\s+item)"
)
_ENDS_TITLE = re.compile(r"^[\s.:—–\-−|]*$")
LIKE = 0.5
"""A title that fits this well names its item."""
_SURE = 0.85


@dataclass(slots=True)
class Candidate:
    """A line, the item it would begin, and the evidence."""

    block: int
    known: Known
    place: int
    """The item's place in the order of the form."""
    score: float
    likeness: float
    combined: tuple[str, ...]
    title: str
    numbered: bool
    """The line names the item by its number."""
    notes: tuple[str, ...] = ()


def candidates(
    blocks: list[Block], form: tuple[Known, ...], contents: Contents, anchors: dict[str, int], repeated: set[int]
) -> list[Candidate]:
    """All of them, in the order of the document; those that start at a byte in `repeated` may be running heads."""
    found: list[Candidate] = []
    part = ""
    parted = len({one.part for one in form}) > 1
    for number, block in enumerate(blocks):
        if block.kind != TEXT or not block.text or number in contents.taken:
            continue
        if parted:
            part = part_of_line(block.text) or part
        heading = heading_of(block.text)
        if heading is not None:
            found += _numbered(blocks, number, form, heading.part or part)
    for one in found:
        one.score -= 0.5 * (blocks[one.block].start in repeated)
    found += _linked(blocks, form, contents, anchors, {one.block for one in found})
    return sorted(found, key=lambda one: one.block)


def _numbered(blocks: list[Block], number: int, form: tuple[Known, ...], part: str) -> list[Candidate]:
    """What a line with `Item N` may begin: of the items with this number, those whose title fits."""
    block = blocks[number]
    heading = heading_of(block.text)
    assert heading is not None
    rest = heading.rest or _following(blocks, number)
    title = words(rest[:200])
    score = 1.0 + 0.6 * block.bold + 0.3 * heading.shouted + 0.3 * (len(block.text) < 120)
    if _in_prose(blocks, number, heading.rest):
        score -= 3.0
    if _repeats(heading.rest):
        score -= 0.7
    if _empty(blocks, number, heading.items):
        score -= 1.0
    same = [(place, one) for place, one in enumerate(form) if one.item == heading.items[0]]
    fits = [(place, one, likeness(one, title)) for place, one in same]
    best = max((fit for _, _, fit in fits), default=0.0)
    found = []
    for place, one, fit in fits:
        if len(fits) > 1 and fit < best - 0.3 and best >= LIKE:
            continue
        right = bool(part) and bool(one.part) and part == one.part
        empty = not title
        doubt = 0.0 if fit >= LIKE or (empty and right) else 0.0 if not heading.rest else 1.2
        extra = 3.0 * fit + (0.6 if right else 0.0) - doubt - 0.3 * bool(block.link)
        found.append(Candidate(number, one, place, score + extra, fit, heading.items[1:], _title(rest, one, fit), True))
    if best < 0.34 and title:
        found += _mistaken(number, form, title, rest, score, heading.items)
    return found


def _mistaken(
    number: int, form: tuple[Known, ...], title: list[str], rest: str, score: float, items: tuple[str, ...]
) -> list[Candidate]:
    """A heading with another item's title: the title is believed, and it is said."""
    fits = [(likeness(one, title), place, one) for place, one in enumerate(form)]
    fit, place, one = max(fits, key=lambda found: found[0])
    if fit < _SURE or sum(1 for found in fits if found[0] >= fit) > 1 or len(words(one.titles[0])) < 2:
        return []
    note = f"its heading says item {items[0]}, its title is that of item {one.item}"
    return [Candidate(number, one, place, score + 3.0 * fit - 0.8, fit, (), _title(rest, one, fit), True, (note,))]


def _following(blocks: list[Block], number: int) -> str:
    """The title where the heading's line holds the number alone: the next line that says something."""
    for block in blocks[number + 1 : number + 4]:
        if block.kind != TEXT:
            return ""
        if block.text.strip():
            return "" if len(block.text) > 200 or heading_of(block.text) else block.text.strip()
    return ""


def _in_prose(blocks: list[Block], number: int, rest: str) -> bool:
    """Whether the line is the middle of a sentence, or one that speaks of an item."""
    block = blocks[number]
    if block.text[0] in "“\"'‘":
        return True
    if _PROSE.match(rest):
        return True
    before = blocks[number - 1].text.rstrip() if block.soft and number else ""
    if before and (_OPEN_END.search(before) or (before[-1].islower() and len(before) > 60)):
        return True
    return len(block.text) > 120 and bool(re.match(r"[^.:—–]{0,120}[”\"]", rest))


def _empty(blocks: list[Block], number: int, items: tuple[str, ...]) -> bool:
    """Whether the heading of another item follows at once."""
    for block in blocks[number + 1 : number + 4]:
        if block.kind != TEXT or not block.text or part_of_line(block.text):
            continue
        heading = heading_of(block.text)
        return heading is not None and heading.items != items
    return False


def _repeats(rest: str) -> bool:
    return "continued" in rest[:200].lower()


def _title(rest: str, known: Known, fit: float) -> str:
    """The heading's own words, up to where its title ends."""
    text = " ".join(rest.split())
    if len(text) <= 160:
        cut = text
        stop = re.search(r"[.:]\s|\s[—–]\s", text)
        if stop and len(words(text[: stop.start()])) >= 1 and len(text) > 70:
            cut = text[: stop.start()]
    else:
        stop = re.search(r"[.:]\s|\s[—–]\s", text)
        cut = text[: stop.start()] if stop and stop.start() <= 200 else ""
    return cut.strip(" .:—–-") or (known.titles[0] if fit < LIKE else "")


def _linked(
    blocks: list[Block], form: tuple[Known, ...], contents: Contents, anchors: dict[str, int], taken: set[int]
) -> list[Candidate]:
    """Places that the table of contents leads to, where a line bears the item's title but not its number."""
    starts = [block.start for block in blocks]
    found: list[Candidate] = []
    done: set[int] = set()
    for entry in contents.entries:
        if len(entry.heading.items) != 1 or entry.link not in anchors:
            continue
        fits = [(p, one) for p, one in enumerate(form) if one.item == entry.heading.items[0]]
        fits = [(p, one) for p, one in fits if len(fits) == 1 or one.part == entry.part]
        at = bisect_left(starts, anchors[entry.link])
        for number in range(max(0, at - 1), min(at + 3, len(blocks))):
            block = blocks[number]
            if (
                block.kind != TEXT
                or number in taken
                or number in done
                or number in contents.taken
                or len(block.text) > 200
            ):
                continue
            for place, one in fits:
                fit = likeness(one, words(block.text))
                if fit >= 0.75:
                    done.add(number)
                    note = "its heading bears the title without the number; the table of contents leads there"
                    found.append(
                        Candidate(number, one, place, 0.6 + 2 * fit, fit, (), block.text.strip(), False, (note,))
                    )
    return found
