"""Blocks → items: the chain of headings, in the form's order, that most evidence speaks for.

Each candidate has a score; the chain with the highest sum in which items only advance is found in one pass that keeps
the best chain for each item. Whatever stands before the first heading, and after the signatures, has no item.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from trine.data.edgar.candidates import LIKE, Candidate
from trine.data.edgar.contents import Contents
from trine.data.edgar.forms import Known
from trine.data.edgar.headings import heading_of
from trine.data.edgar.html import TEXT, Block

_END = re.compile(r"\W*S\s?I\s?G\s?N\s?A\s?T\s?U\s?R\s?E\s?S?\W*", re.IGNORECASE)
_AFTER = re.compile(
    r"\W*(?:exhibits?\sindex|index\s(?:to|of)\s(?:exhibits|(?:consolidated\s)?financial\sstatements?)|(?:reports?|consents?)\sof\sindependent\s(?:registered|certified|auditor)|consolidated\sbalance\ssheets?|management[’']s\sreport\son)\b.{0,60}",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(
    r"\bincorporated\b|\b(?:set\sforth|included|contained|appears?|found|listed|presented|begin\w*)\s(?:\w+\s){0,3}(?:in|on|under|at)\b|\b(?:refer|see)\b|not\sapplicable|\bnone\b|reserved|omitted|not\srequired",
    re.IGNORECASE,
)
_LEAST = {("I", "1"): 1500, ("II", "7"): 1500, ("II", "8"): 1500}
_LEAST_SCORE = 1.2


@dataclass(slots=True)
class Section:
    """A stretch of blocks and the item it is; item '' for what is none."""

    known: Known | None
    begin: int
    end: int
    title: str
    confidence: float
    warnings: list[str] = field(default_factory=list)
    candidate: Candidate | None = None


def chain(found: list[Candidate], places: int) -> list[Candidate]:
    """The candidates of the best chain; time in candidates times items of the form."""
    best: list[tuple[float, int]] = [(0.0, -1)] * (places + 1)
    before: list[int] = []
    at = 0
    while at < len(found):
        stop = at
        while stop < len(found) and found[stop].block == found[at].block:
            stop += 1
        updates = []
        for number in range(at, stop):
            one = found[number]
            score, last = max(best[: one.place + 1], key=lambda pair: pair[0])
            before.append(last)
            if one.score >= _LEAST_SCORE and score + one.score > best[one.place + 1][0] + 1e-9:
                updates.append((one.place + 1, (score + one.score, number)))
        for place, pair in updates:
            best[place] = max(best[place], pair, key=lambda one: one[0])
        at = stop
    number = max(best, key=lambda pair: pair[0])[1]
    picked = []
    while number >= 0:
        picked.append(found[number])
        number = before[number]
    return picked[::-1]


def unordered(found: list[Candidate]) -> list[Candidate]:
    """Of each item its best heading, for forms whose items come in any order."""
    best: dict[int, Candidate] = {}
    for one in found:
        if one.score >= _LEAST_SCORE and (one.place not in best or one.score > best[one.place].score + 1e-9):
            best[one.place] = one
    taken: dict[int, Candidate] = {}
    for one in best.values():
        if one.block not in taken or one.score > taken[one.block].score:
            taken[one.block] = one
    return [taken[number] for number in sorted(taken)]


def sections(blocks: list[Block], picked: list[Candidate], contents: Contents) -> list[Section]:
    """Contiguous sections that cover all blocks."""
    if not picked:
        return [Section(None, 0, len(blocks), "", 0.0)]
    listed = {item for entry in contents.entries for item in entry.heading.items}
    found = [Section(None, 0, picked[0].block, "Cover", 1.0)] if picked[0].block else []
    for number, one in enumerate(picked):
        end = picked[number + 1].block if number + 1 < len(picked) else len(blocks)
        section = Section(one.known, one.block, end, one.title, 0.0, list(one.notes), one)
        if one.combined:
            section.warnings.append(f"one section for items {', '.join((one.known.item, *one.combined))}")
        current = not one.known.part
        neighbours = 2 if current else _neighbours(picked, number)
        section.confidence = _confidence(one, neighbours, current or one.known.item in listed)
        found.append(section)
    _end(blocks, found)
    for section in found:
        if section.known:
            _check_size(blocks, section)
    return found


def _neighbours(picked: list[Candidate], number: int) -> int:
    """How many of the headings before and after are those of the items next to this one, or the end of the form."""
    one = picked[number]
    left = number == 0 or one.place - picked[number - 1].place - len(picked[number - 1].combined) <= 1
    right = number + 1 == len(picked) or picked[number + 1].place - one.place - len(one.combined) <= 1
    return int(left) + int(right)


def _confidence(one: Candidate, neighbours: int, listed: bool) -> float:
    base = 0.45 if one.numbered else 0.3
    return min(
        0.99,
        base + 0.35 * one.likeness + 0.05 * neighbours + 0.05 * listed + 0.04 * min(2.0, max(0.0, one.score - 3)) / 2,
    )


def _end(blocks: list[Block], found: list[Section]) -> None:
    """Cut the last item at the signatures, or where exhibits and statements follow an item that holds neither."""
    last = found[-1]
    if last.known is None:
        return
    short = last.known.most < 100_000
    for number in range(last.begin + 1, last.end):
        block = blocks[number]
        if block.kind != TEXT or len(block.text) > 100:
            continue
        signed = _END.fullmatch(block.text)
        if signed or (short and _AFTER.fullmatch(block.text)):
            found.append(Section(None, number, last.end, "Signatures" if signed else block.text.strip(), 1.0))
            last.end = number
            return


def _check_size(blocks: list[Block], section: Section) -> None:
    """Lower the confidence of an item that is much longer or shorter than such an item is."""
    assert section.known is not None
    size = 0
    for block in blocks[section.begin : section.end]:
        size += len(block.text) if block.kind == TEXT else sum(len(cell[0]) + 3 for row in block.rows for cell in row)
    if size > section.known.most:
        section.warnings.append(f"{size:,} characters, where such an item has at most {section.known.most:,}")
        section.confidence = min(section.confidence, 0.3 if size < 3 * section.known.most else 0.1)
    long = section.known.most > 1_000_000
    least = _LEAST.get((section.known.part, section.known.item), 0) if long else 0
    if size < least:
        text = " ".join(block.text for block in blocks[section.begin : section.end])
        if _ELSEWHERE.search(text):
            section.warnings.append("refers to another place for its text")
        else:
            section.warnings.append(f"only {size:,} characters")
            section.confidence = min(section.confidence, 0.6)


def leads(section: Section, text: str) -> bool:
    """Whether the text begins with the heading of the item that the section claims to be."""
    one = section.candidate
    if one is None or section.known is None:
        return True
    heading = heading_of(text)
    if not one.numbered:
        return heading is None and one.likeness >= LIKE
    if heading is None:
        return False
    return section.known.item in heading.items or bool(one.notes)
