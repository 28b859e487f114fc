"""Tables of contents: rows that name the items of the form one after the other, before or after the text itself.

What they say is used (places they link to, pages, titles) and they are taken out of the text.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from trine.data.edgar.forms import Known, likeness, words
from trine.data.edgar.headings import Heading, heading_of, part_of_line
from trine.data.edgar.html import TABLE, TEXT, Block
from trine.data.edgar.tables import joined

_LEAST = 4
_LONGEST_ROW = 260
_BETWEEN = 6
_PAGES = re.compile(r"(?:^|[\s.…,|])((?:[A-Z]{1,2}-)?\d{1,3}(?:\s*[-–—,]\s*\d{1,3})*)[\s.]*$")
_ONLY_PAGE = re.compile(
    r"[\s.…]*(?:(?:[A-Z]{1,2}-)?\d{1,3}(?:\s*[-–—,]\s*\d{1,3})*|[ivxl]{1,5}|N/?A|\*+|page(?:\s*no\.?|\s*number)?)[\s.]*",
    re.I,
)
_BARE = re.compile(r"(\d{1,2}[A-Ka-k]?)\.?\s+(\D{4,200})")
_BODY = re.compile(r"\W*(?:none|not\s(?:applicable|required)|n/a|omitted)\b.{0,40}\.\W*$|.{80,}[a-z]{2}\.$", re.I)
_BARE_WITHIN = 2_000_000
_HEAD = re.compile(
    r"\W*(?:(?:form\s10-[kq]\s)?(?:cross[- ]reference\s)?"
    r"(?:table\sof\scontents|index|contents|page(?:\s(?:no|number)s?\.?)?))\W*",
    re.I,
)
_TAIL = re.compile(
    r"\W*(?:signatures?|exhibits?(?:\sindex)?|index\sto\sexhibits|glossary|certifications?|power\sof\sattorney)\b", re.I
)


@dataclass(slots=True)
class Entry:
    """A row of a table of contents."""

    heading: Heading
    part: str
    title: str
    link: str
    pages: str
    start: int


@dataclass(slots=True)
class Contents:
    """What was found, and which blocks it was."""

    entries: list[Entry] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)


def find_contents(blocks: list[Block], form: tuple[Known, ...]) -> Contents:
    """Tables of contents among `blocks`: tables with four item rows and more, and runs of such lines."""
    found = Contents()
    headings: list[tuple[int, Heading]] = []
    for number, block in enumerate(blocks):
        if block.kind == TABLE:
            _from_table(block, number, form, found)
        elif heading := heading_of(block.text):
            headings.append((number, heading))
    counts = Counter(item for _, heading in headings for item in heading.items)
    for run in _runs(blocks, headings):
        _from_lines(blocks, run, headings, counts, found)
    for number in sorted(found.taken):
        _take_around(blocks, number, found.taken)
    return found


def _from_table(block: Block, number: int, form: tuple[Known, ...], found: Contents) -> None:
    entries = []
    bare = block.start < _BARE_WITHIN and _is_bare(block, form)
    part = ""
    words = 0
    for at, row in enumerate(block.rows):
        spans = joined(row)
        text = " ".join(one[0] for one in spans)
        words += len(text)
        part = part_of_line(text) or part
        heading = heading_of(f"Item {text}" if bare and _BARE.match(text) else text)
        if heading is None:
            continue
        pages = _PAGES.search(text)
        title = heading.rest[: -len(pages[0])] if pages and heading.rest.endswith(pages[0]) else heading.rest
        entries.append(
            Entry(
                heading,
                heading.part or part,
                title.strip(" .…"),
                (block.links or {}).get(at, ""),
                pages[1] if pages else "",
                block.start,
            )
        )
    if len(entries) >= _LEAST and words < _LONGEST_ROW * len(block.rows):
        found.entries += entries
        found.taken.add(number)


def _is_bare(block: Block, form: tuple[Known, ...]) -> bool:
    """Whether rows give number and title of items without the word: `1A  Risk factors  8`."""
    fits = 0
    for row in block.rows:
        found = _BARE.match(" ".join(cell[0] for cell in row if cell[0]))
        fits += bool(found) and any(
            likeness(one, words(found[2])) >= 0.75 for one in form if one.item == found[1].upper()
        )
    return fits >= 2 * _LEAST


def _runs(blocks: list[Block], headings: list[tuple[int, Heading]]) -> list[list[int]]:
    """Indices into `headings` of those that follow one another with only short lines between."""
    runs: list[list[int]] = []
    seen: set[tuple[str, tuple[str, ...]]] = set()
    part = ""
    for at, (number, heading) in enumerate(headings):
        part = next((p for one in blocks[max(0, number - 3) : number] if (p := part_of_line(one.text))), part)
        again = (part, heading.items) in seen
        if runs and not again:
            before = headings[runs[-1][-1]][0]
            between = blocks[before:number]
            if len([one for one in between if one.text]) <= _BETWEEN and all(
                one.kind == TEXT and len(one.text) < _LONGEST_ROW and not _BODY.match(one.text) for one in between
            ):
                runs[-1].append(at)
                seen.add((part, heading.items))
                continue
        runs.append([at])
        seen = {(part, heading.items)}
    return [run for run in runs if len(run) >= _LEAST]


def _from_lines(
    blocks: list[Block], run: list[int], headings: list[tuple[int, Heading]], counts: Counter[str], found: Contents
) -> None:
    """A run is contents when most of its lines bear pages or links, or when the same items stand elsewhere again."""
    last = headings[run[-1]][0]
    entries = []
    part = ""
    for order, at in enumerate(run):
        number, heading = headings[at]
        following = headings[run[order + 1]][0] if order + 1 < len(run) else min(number + 3, len(blocks))
        part = next((p for one in blocks[max(0, number - 3) : number] if (p := part_of_line(one.text))), part)
        pages = _PAGES.search(heading.rest)
        link = blocks[number].link
        title = heading.rest
        page = ""
        for one in blocks[number + 1 : following]:
            link = link or one.link
            if one.text and _ONLY_PAGE.fullmatch(one.text):
                page = one.text.strip()
            elif not title and one.text:
                title = one.text
            if not page and (more := _PAGES.search(one.text)) and len(one.text) < 120:
                page = more[1]
        if pages and title == heading.rest:
            title, page = heading.rest[: pages.start()], pages[1]
        entries.append(Entry(heading, heading.part or part, title.strip(" .…"), link, page, blocks[number].start))
    marked = sum(1 for one in entries if one.pages or one.link)
    own = Counter(item for at in run for item in headings[at][1].items)
    repeated = sum(1 for one in entries if counts[one.heading.items[0]] > own[one.heading.items[0]])
    distinct = len({(one.part, one.heading.items) for one in entries})
    bare = last - headings[run[0]][0] + 1 == len(run)
    first = number_share(blocks, headings[run[0]][0]) < 0.2
    if distinct < _LEAST or not (marked * 5 >= len(run) * 3 or ((first or bare) and repeated * 3 >= len(run) * 2)):
        return
    found.entries += entries
    begin = headings[run[0]][0]
    end = last + 1
    while end < len(blocks) and end <= last + 4 and blocks[end].kind == TEXT and len(blocks[end].text) < 120:
        text = blocks[end].text
        if heading_of(text) or not (
            not text or _ONLY_PAGE.fullmatch(text) or _TAIL.match(text) or (_PAGES.search(text) and end == last + 1)
        ):
            break
        end += 1
    found.taken |= set(range(begin, end))


def number_share(blocks: list[Block], number: int) -> float:
    """How far into the document a block stands: 0 to 1."""
    return blocks[number].start / max(1, blocks[-1].start)


def _take_around(blocks: list[Block], number: int, taken: set[int]) -> None:
    """Also the heading `TABLE OF CONTENTS`, `Page`, and `PART I` right before."""
    at = number - 1
    while at >= max(0, number - 5) and at not in taken and blocks[at].kind == TEXT:
        text = blocks[at].text
        if text and not (_HEAD.fullmatch(text) or _ONLY_PAGE.fullmatch(text) or part_of_line(text)):
            return
        if text:
            taken |= set(range(at, number))
        at -= 1
