"""A filing's main document → its items, each with its text, tables, place in the file, and how sure it is.

    parse_document(data, "10-K").items[3].text

All that is shown stands in exactly one item (one without a number for cover, signatures and what no heading claims) or
in `removed`. An item that is not found is explained in `warnings`, never filled with other text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trine.data.edgar import furniture
from trine.data.edgar.candidates import LIKE, candidates
from trine.data.edgar.contents import Contents, Entry, find_contents
from trine.data.edgar.forms import SECTIONS, Known, family, known_items, likeness, words
from trine.data.edgar.furniture import Removed, take_furniture
from trine.data.edgar.headings import heading_of, part_of_line
from trine.data.edgar.html import TABLE, TEXT, Block, Page, read_html
from trine.data.edgar.items import Section, chain, leads, sections, unordered
from trine.data.edgar.plaintext import is_plain, read_plain
from trine.data.edgar.tables import as_lines, joined, line, markdown, part_of

_WITHHELD = 0.15
"""An item surer than this keeps its name."""


@dataclass(slots=True)
class Item:
    """An item of a filing; `item` is '' for text that belongs to none."""

    part: str
    item: str
    title: str
    text: str
    tables: list[str]
    """Each as Markdown rows; they stand in `text` as well, where they belong."""
    confidence: float
    """0 to 1: see docs/edgar.md."""
    warnings: list[str]
    byte_start: int
    byte_end: int


@dataclass(slots=True)
class Parsed:
    """What a document holds."""

    items: list[Item]
    removed: list[Removed] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def parse_document(data: bytes, form: str) -> Parsed:
    """Items of `data`, the document of a filing of type `form`. Raises nothing for any bytes."""
    data, wide = _narrow(data)
    page = read_plain(data) if is_plain(data) else read_html(data)
    trimmed = take_furniture(_lines(page.blocks))
    blocks, removed = trimmed.blocks, trimmed.removed
    name = family(form)
    warnings = list(page.warnings) + (["encoded as UTF-16: places are those in UTF-8"] if wide else [])
    known = known_items(name) if name else ()
    contents = find_contents(blocks, known) if name and name != "8-K" else Contents()
    removed += _taken(blocks, contents) + _hidden(page)
    left_out: set[int] = set()
    if not name:
        found = _by_title(blocks) if form.upper().startswith("DEF") else [Section(None, 0, len(blocks), "", 1.0)]
    else:
        if name == "8-K":
            known = _numbering(blocks, known)
        headed = candidates(blocks, known, contents, page.anchors, trimmed.repeated)
        picked = unordered(headed) if name == "8-K" else chain(headed, len(known))
        found = sections(blocks, picked, contents)
        warnings += _absent(found, known, contents) if name in ("10-K", "10-KSB", "10-Q", "20-F") else []
        if not picked:
            warnings.append(f"no heading of an item of form {form} found: the whole text is given without items")
        for one in found:
            left_out |= _running(blocks, one, trimmed.repeated)
    removed += [Removed(furniture.RUNNING_HEAD, blocks[number].text, blocks[number].start) for number in left_out]
    parts = _part_headings(blocks, found)
    removed += [Removed(furniture.PART, blocks[number].text, blocks[number].start) for number in parts]
    removed.sort(key=lambda one: one.byte_start)
    left_out |= contents.taken | parts
    items = [_item(blocks, one, left_out, warnings) for one in found]
    items = [one for one in items if one.text or one.item]
    for one, end in zip(items, [*(one.byte_start for one in items[1:]), len(data)], strict=False):
        one.byte_end = end
    removed, apart = furniture.set_apart(removed, [one.text for one in items])
    return Parsed(items + _apart(apart), removed, warnings)


def _apart(kept: list[Removed]) -> list[Item]:
    """Furniture beyond what may be removed, as items without a number at the end: contents, page numbers and heads."""
    note = f"with what was removed more than {furniture.MOST_FURNITURE:.2%} of the document's numbers: set apart"
    items = []
    for title, of_pages in (("Contents", False), ("Furniture", True)):
        lines = [one for one in kept if (one.kind != furniture.CONTENTS) == of_pages]
        if lines:
            text = "\n".join(one.text.strip() for one in lines)
            begin, end = lines[0].byte_start, lines[-1].byte_start
            items.append(Item("", "", title, text, [], 1.0, [note], begin, end))
    return items


def text_of(data: bytes) -> str:
    """All that a document shows, tables as rows; nothing removed."""
    page = read_plain(data) if is_plain(data) else read_html(data)
    parts = []
    for block in page.blocks:
        if block.kind == TABLE:
            parts += [" ".join([cell[0] for cell in row if cell[0]]) for row in block.rows]
        elif block.text:
            parts.append(block.text)
    return "\n".join(parts)


def _narrow(data: bytes) -> tuple[bytes, bool]:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", "replace").encode(), True
    return (data[3:] if data[:3] == b"\xef\xbb\xbf" else data), False


def _lines(blocks: list[Block]) -> list[Block]:
    """Tables that only place text become lines; a table is cut where a row is the heading of an item."""
    found: list[Block] = []
    for block in blocks:
        if block.kind != TABLE:
            found.append(block)
            continue
        flat = as_lines(block)
        if flat is not None:
            found += flat
            continue
        spans = {number: joined(row) for number, row in enumerate(block.rows) if _may_head(row)}
        heads = [number for number, row in spans.items() if row and heading_of(" ".join(one[0] for one in row))]
        if not heads or len(heads) >= 4:
            found.append(block)
            continue
        done = 0
        for number in heads:
            found += [one for one in (part_of(block, done, number),) if one]
            found.append(line(spans[number], (block.links or {}).get(number, "")))
            done = number + 1
        found += [one for one in (part_of(block, done, len(block.rows)),) if one]
    return found


def _may_head(row: list[tuple[str, int, int, bool]]) -> bool:
    first = next((cell[0] for cell in row if cell[0]), "")
    return first[:1] in "IiPp" and first[:8].replace(" ", "").lower().startswith(("item", "part"))


def _numbering(blocks: list[Block], known: tuple[Known, ...]) -> tuple[Known, ...]:
    """Of an 8-K's two numberings, the one that more of its headings use."""
    votes = {True: 0, False: 0}
    for block in blocks:
        if block.kind == TEXT and (heading := heading_of(block.text)) and not heading.part:
            title = words(heading.rest[:200])
            fits = any(likeness(one, title) >= LIKE for one in known if one.item == heading.items[0])
            votes["." in heading.items[0]] += 3 if fits else 1
    return tuple(one for one in known if ("." in one.item) == (votes[True] >= votes[False]))


def _taken(blocks: list[Block], contents: Contents) -> list[Removed]:
    found = []
    for number in sorted(contents.taken):
        block = blocks[number]
        if block.kind == TABLE:
            rows = [(" ".join(one[0] for one in joined(row)), row) for row in block.rows]
            found += [Removed(furniture.CONTENTS, text, row[0][2]) for text, row in rows if text]
        elif block.text:
            found.append(Removed(furniture.CONTENTS, block.text, block.start))
    return found


def _running(blocks: list[Block], section: Section, repeated: set[int]) -> set[int]:
    """Headings of a section that stand again on its further pages."""
    if section.known is None or not repeated:
        return set()
    found = set()
    for number in range(section.begin + 1, section.end):
        block = blocks[number]
        if block.start in repeated and (heading := heading_of(block.text)) and section.known.item in heading.items:
            found.add(number)
    return found


def _part_headings(blocks: list[Block], found: list[Section]) -> set[int]:
    """Lines such as `PART II` before an item's heading: of neither item."""
    lines = set()
    for section in found:
        number = section.begin - 1
        while section.known and number >= 0 and blocks[number].kind == TEXT:
            text = blocks[number].text
            if part_of_line(text) and not heading_of(text):
                lines.add(number)
            elif text:
                break
            number -= 1
    return lines


def _hidden(page: Page) -> list[Removed]:
    names = {"ix:header": furniture.HIDDEN, "ix:hidden": furniture.HIDDEN}
    return [
        Removed(names.get(kind, "hidden element"), f"{kind}, {end - begin:,} bytes", begin)
        for kind, begin, end in page.hidden
        if kind not in ("script", "style", "title")
    ]


def _absent(found: list[Section], known: tuple[Known, ...], contents: Contents) -> list[str]:
    """Why each item of the form that was not found is not there."""
    have = {(one.known.part, one.known.item) for one in found if one.known}
    combined = {item: one for one in found if one.candidate for item in one.candidate.combined}
    notes = []
    for one in known:
        if one.custom or (one.part, one.item) in have:
            continue
        if (holder := combined.get(one.item)) and holder.known and holder.known.part == one.part:
            notes.append(f"{one.name}: in one section with item {holder.known.item}")
        elif entry := _listed(one, contents):
            pages = f", page {entry.pages}" if entry.pages else ""
            title = f' as "{entry.title[:80]}"' if entry.title else ""
            notes.append(
                f"{one.name}: listed in the table of contents{title}{pages}; no heading of its own in the text"
            )
        else:
            notes.append(f"{one.name}: not in this filing, neither in a table of contents nor as a heading")
    return notes


def _listed(known: Known, contents: Contents) -> Entry | None:
    """The row of a table of contents that names the item."""
    for entry in contents.entries:
        if known.item in entry.heading.items:
            right = entry.part == known.part if entry.part else likeness(known, words(entry.title)) >= LIKE
            if right or not known.part:
                return entry
    return None


def _by_title(blocks: list[Block]) -> list[Section]:
    """Sections of a proxy statement: its bold or capital headings that begin as such sections do."""
    starts: list[int] = []
    for number, block in enumerate(blocks):
        text = block.text
        if block.kind != TEXT or not 4 < len(text) < 120 or not (block.bold or text.isupper()):
            continue
        lower = text.lower().replace("-", " ")
        numbered = lower.startswith(("proposal", "item ")) and any(c.isdigit() for c in lower[:14])
        again = starts and blocks[starts[-1]].text == text
        if (numbered or lower.startswith(SECTIONS)) and not again:
            starts.append(number)
    ends = [*starts, len(blocks)]
    found = [Section(None, 0, ends[0], "", 1.0)]
    return found + [Section(None, a, b, blocks[a].text, 0.7) for a, b in zip(starts, ends[1:], strict=True)]


def _item(blocks: list[Block], section: Section, left_out: set[int], warnings: list[str]) -> Item:
    tables: list[str] = []
    parts: list[str] = []
    start = -1
    for number in range(section.begin, section.end):
        block = blocks[number]
        if number in left_out:
            continue
        if start < 0:
            start = block.start
        if block.kind == TABLE:
            tables.append(markdown(block.rows))
            parts += ["\n\n" if parts else "", tables[-1], "\n"]
        else:
            parts += ["\n" if block.soft else "\n\n", block.text] if parts else [block.text]
    text = "".join(parts).strip()
    start = max(start, 0) if section.begin else 0
    known = section.known
    if known is None:
        return Item("", "", section.title, text, tables, section.confidence, section.warnings, start, 0)
    if not leads(section, text):
        section.warnings.append(f"does not begin with the heading of {known.name.lower()}: given without a name")
    elif section.confidence < _WITHHELD:
        section.warnings.append(f"not {known.name.lower()}: given without a name")
    else:
        confidence = round(section.confidence, 3)
        return Item(known.part, known.item, section.title, text, tables, confidence, section.warnings, start, 0)
    warnings.append(f"{known.name}: {section.warnings[-1]}")
    return Item("", "", section.title, text, tables, 0.1, section.warnings, start, 0)
