"""What a line says when it is the heading of an item: `Item 7A.`, `ITEMS 1 AND 2`, `I T E M  5.02`, `Item No. IV`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_ROMAN = {"I": 1, "II": 2, "III": 3, "IV": 4, "V": 5, "VI": 6, "VII": 7, "VIII": 8, "IX": 9, "X": 10, "XI": 11,
          "XII": 12, "XIII": 13, "XIV": 14, "XV": 15, "XVI": 16}  # fmt: skip
_PART = re.compile(r"[\s\W]{0,4}P\s?A\s?R\s?T\s{1,4}(IV|I{1,3}|[1-4])(?![A-Za-z0-9])[\s.,:;—–\-]{0,6}", re.IGNORECASE)
_ITEM = re.compile(
    r"[\s*•·#(\[]{0,4}I\s?T\s?E\s?M\s?(S?)(?![a-rt-zA-RT-Z])[\s.:]{0,4}(?:N[oO]\.?|NUMBER|Number|#)?[\s.:]{0,3}",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(\d{1,2}\.\d\d)(?!\d)|(\d{1,2})\s?[.\-]?\s?\(?([A-Ka-k])?\)?(?![A-Za-z0-9])|(\d{1,2})(?=[A-Za-z(])"
)
_NUMERAL = re.compile(r"(X?(?:IX|IV|V?I{1,3}|V)|X)(?![A-Za-z0-9])(?=\s*[.:—–-]|\s)")
_JOIN = re.compile(r"[\s.]{0,3}(?:,?\s?(and|&|through|to|,|/|-|–|—)\s?)(?:\s?Items?\s)?\s?", re.IGNORECASE)
_REST = re.compile(r"[\s.:;,)\]—–\-−|*]*")
_LATER = re.compile(r"(?<=.)\bITEMS? ?\d", re.IGNORECASE)
_MARKS = " *•·#([\t\xa0-–—"
LONGEST = 240


@dataclass(frozen=True, slots=True)
class Heading:
    """Items that a line names, and what follows their numbers."""

    part: str
    items: tuple[str, ...]
    rest: str
    shouted: bool
    """Written ITEM."""


def heading_of(text: str) -> Heading | None:
    """What the beginning of `text` says as a heading, or None. Looks at its first 240 characters."""
    head = text[: 2 * LONGEST].lstrip(_MARKS)[:LONGEST]
    return _read(head) if head[:1] in ("I", "i", "P", "p") else None


@lru_cache(1 << 14)
def _read(head: str) -> Heading | None:
    part = ""
    if found := _PART.match(head):
        part = "I" * int(found[1]) if found[1].isdecimal() and found[1] != "4" else found[1].upper().replace("4", "IV")
        head = head[found.end() :]
        later = _LATER.search(head)
        head = head[later.start() :] if later else head
    named = _ITEM.match(head)
    if named is None:
        return None
    shouted = "ITEM" in named[0].replace(" ", "")
    items: list[str] = []
    at = named.end()
    joint = ""
    while len(items) < 8:
        number, end = _number(head, at)
        if not number:
            break
        if joint in ("through", "to", "-", "–", "—") and items and number.isdecimal() and items[-1].isdecimal():
            first, last = int(items[-1]), int(number)
            if not first < last <= first + 6:
                break
            items += [str(one) for one in range(first + 1, last + 1)]
        else:
            items.append(number)
        at = end
        join = _JOIN.match(head, at)
        if join is None or (join[1] in ",-–—/" and not named[1]) or (join[1] == "to" and not named[1]):
            break
        following, _ = _number(head, join.end())
        if not following or following in items:
            break
        joint, at = join[1].lower(), join.end()
    if not items:
        return None
    rest = _REST.sub("", head[at:], count=1)
    return Heading(part, tuple(items), rest, shouted)


def part_of_line(text: str) -> str:
    """`II` for a line that is `PART II` and little more; ''."""
    text = text[: 2 * LONGEST].strip()
    found = _PART.match(text) if text[:1] in ("P", "p") else None
    if not found or len(text) > 90:
        return ""
    roman = {"1": "I", "2": "II", "3": "III", "4": "IV"}
    return roman.get(found[1], found[1].upper())


def _number(text: str, at: int) -> tuple[str, int]:
    """An item's number at `at` and where it ends; '' where there is none."""
    found = _NUMBER.match(text, at)
    if found is None:
        roman = _NUMERAL.match(text, at)
        return (str(_ROMAN[roman[1]]), roman.end()) if roman and roman[1] in _ROMAN else ("", at)
    if found[1]:
        return found[1], found.end()
    if found[2]:
        letter = found[3] or ""
        # `Item 1. A summary` is item 1 and a sentence; `Item 9 A.` and `Item 9(A)` are item 9A
        between = text[found.end(2) : found.start(3)] if letter else ""
        if letter and " " in between and ("." in between or letter.islower()):
            return str(int(found[2])), found.end(2)
        return f"{int(found[2])}{letter.upper()}", found.end()
    rest = text[found.end() : found.end() + 14]
    suffix = re.match(
        r"([A-C])(?=RISK|UNRESOLVED|CYBER|QUANTIT|CONTROLS|OTHER|DISCLOS|Risk|Unres|Cyber|Quant|Contr|Other|Discl)",
        rest,
    )
    return str(int(found[4])) + (suffix[1] if suffix else ""), found.end() + (1 if suffix else 0)
