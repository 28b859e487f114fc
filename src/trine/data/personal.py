"""Personal data in text: found by strict patterns, with the checksum where a kind has one.

Patterns ask for the written form of a kind, not for digits alone, because filings are full of numbers: a phone number
needs its separators and a valid area code, a card number its groups, issuer and Luhn checksum, an IBAN its country's
length and checksum (ISO 13616, modulo 97), a social security or taxpayer number both dashes and a number that can be
issued. Names and addresses are not looked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trine.data.config import PersonalKind
from trine.data.conversations import as_json, as_text, from_json
from trine.data.document import Document, Dropped

Found = tuple[int, int, PersonalKind]
_NUMBERS = ((3, 3, 4), (3, 2, 4), (4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (14,), (15,), (16,))
"""Digits of the groups of phone, social security and card numbers."""
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_US_PHONE = re.compile(
    r"(?:\+?1[-. ]?)?(?:\([2-9]\d\d\)[ \u00a0]?[-–]?[ \u00a0]?|[2-9]\d\d(?P<sep>[-.]))"
    r"\d{3}(?(sep)(?P=sep)|[-. –])\d{4}(?![\w,]|[-.]\d)"
)
_WORLD_PHONE = re.compile(r"\+[1-9](?:\d{0,2}(?:[-. ]\(?\d{1,4}\)?){2,5}|\d{7,14})(?![\w,]|[-.]\d)")
_SSN = re.compile(r"\d{3}-\d{2}-\d{4}(?![\w-]|\.\d)")
_CARD = re.compile(
    r"(?:[2-6]\d{3}(?P<gap>[- ]?)\d{4}(?P=gap)\d{4}(?P=gap)\d{4}|3[47]\d\d(?P<gap2>[- ]?)\d{6}(?P=gap2)\d{5}"
    r"|3[0689]\d\d(?P<gap3>[- ]?)\d{6}(?P=gap3)\d{4})"
    r"(?![\w,-]|\.\d| \d)"
)
_IBAN = re.compile(r"[A-Z]{2}\d{2}(?:(?: ?[A-Z0-9]{4}){2,7})(?: ?[A-Z0-9]{1,3})?(?![\w-])")
_BEFORE = re.compile(r"[\w$€£¥,.+-]")
"""No match stands right after one of these: it would be the tail of a longer number or word."""
_IBAN_LENGTHS = {
    one[:2]: int(one[2:])
    for one in (
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 "
        "LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SD18 "
        "SE24 SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20"
    ).split()
}
"""Characters of an IBAN by country (ISO 13616 registry)."""


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = (int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits)))
    return sum(n - 9 * (n > 9) for n in doubled) % 10 == 0


def iban_valid(text: str) -> bool:
    """Whether a text without spaces has its country's length and checksum (ISO 13616-1)."""
    if len(text) != _IBAN_LENGTHS.get(text[:2]):
        return False
    return int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def find(text: str, kinds: Sequence[PersonalKind]) -> list[Found]:
    """(begin, end, kind) of each find, in order and without overlaps."""
    kept, end = list[Found](), 0
    for one in sorted(one for kind in kinds for one in _FINDERS[kind](text)):
        if one[0] >= end:
            kept.append(one)
            end = one[1]
    return kept


class PersonalData:
    """The step that masks what is found as `[email]`, `[phone]` and so on, or drops the document."""

    def __init__(self, action: str, kinds: tuple[PersonalKind, ...]) -> None:
        self._drop, self._kinds = action == "drop", kinds
        self._counts, self._documents = Counter[str](), 0

    def __call__(self, document: Document) -> Document | Dropped:
        lines = _suspicious(document)
        if not lines:
            return document
        data, pieces, end, counts = document.text.encode(), list[str](), 0, Counter[str]()
        for begin, stop in lines:
            line = data[begin:stop].decode()
            found = find(line, self._kinds)
            counts.update(kind for _, _, kind in found)
            pieces += [data[end:begin].decode(), _masked(line, found)]
            end = stop
        if not counts:
            return document
        self._documents += 1
        self._counts += counts
        if self._drop:
            return Dropped("personal data", ", ".join(sorted(counts)))
        if document.messages is None:
            return document.with_text("".join([*pieces, data[end:].decode()]))
        messages = from_json(document.messages)
        masked = [one | {"content": _masked(one["content"], find(one["content"], self._kinds))} for one in messages]
        return replace(document, text=as_text(masked), messages=as_json(masked))

    def figures(self) -> dict[str, int]:
        """Finds by kind, for the ledger."""
        return {"documents": self._documents} | {kind: self._counts[kind] for kind in self._kinds}


def _masked(text: str, found: list[Found]) -> str:
    pieces, end = list[str](), 0
    for begin, stop, kind in found:
        pieces += [text[end:begin], f"[{kind}]"]
        end = stop
    return "".join([*pieces, text[end:]])


def _suspicious(document: Document) -> list[tuple[int, int]]:
    """(begin, end), in bytes, of the lines that could hold a find: an `@`, a `+` before a digit, or words whose lengths
    and first characters are those of a phone, social security, card or IBAN number."""
    text = document.text.encode()
    data, words = np.frombuffer(text + b"\0\0\0\0", np.uint8), document.words
    if not len(words.begins):
        return []
    digit = (data[words.begins] - 48 < 10) & (data[words.ends - 1] - 48 < 10)
    numbers = np.flatnonzero(digit)
    lengths = np.append(words.ends - words.begins, [0, 0, 0])
    found = list[NDArray[np.int64]]()
    for sizes in _NUMBERS:
        chosen = numbers
        for i, size in enumerate(sizes):
            chosen = chosen[lengths[chosen + i] == size]
        found.append(words.begins[chosen])
    begins = words.begins[numbers]
    found.append(begins[(begins > 0) & (data[begins - 1] == ord("+"))])
    named = words.begins[(lengths[:-3] >= 15) | ((lengths[:-3] == 4) & (lengths[1:-2] == 4))]
    country = (data[named] - 65 < 26) & (data[named + 1] - 65 < 26) & (data[named + 2] - 48 < 10)
    found += [named[country], np.flatnonzero(data == ord("@"))]
    places = np.unique(np.concatenate(found))
    lines: list[tuple[int, int]] = []
    for place in places.tolist():
        if not lines or place >= lines[-1][1]:
            lines.append((text.rfind(b"\n", 0, place) + 1, text.find(b"\n", place) + 1 or len(text)))
    return lines


def _matches(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    for match in pattern.finditer(text):
        if not match.start() or not _BEFORE.match(text, match.start() - 1):
            yield match


def _emails(text: str) -> Iterator[Found]:
    if "@" in text:
        for one in _EMAIL.finditer(text):
            yield one.start(), one.end(), "email"


def _phones(text: str) -> Iterator[Found]:
    for one in _matches(text, _US_PHONE):
        yield one.start(), one.end(), "phone"
    if "+" in text:
        for one in _matches(text, _WORLD_PHONE):
            if 8 <= sum(c.isdigit() for c in one[0]) <= 15:
                yield one.start(), one.end(), "phone"


def _ssns(text: str) -> Iterator[Found]:
    for one in _matches(text, _SSN):
        area, group, serial = one[0].split("-")
        taxpayer = area >= "900" and group >= "50"
        if area not in ("000", "666") and (area < "900" or taxpayer) and group != "00" and serial != "0000":
            yield one.start(), one.end(), "ssn"


def _cards(text: str) -> Iterator[Found]:
    for one in _matches(text, _CARD):
        if luhn(re.sub(r"\D", "", one[0])):
            yield one.start(), one.end(), "card"


def _ibans(text: str) -> Iterator[Found]:
    for one in _matches(text, _IBAN):
        length = _IBAN_LENGTHS.get(one[0][:2], 0)
        places = [i for i, c in enumerate(one[0]) if c != " "]
        if len(places) >= length > 0 and iban_valid(one[0].replace(" ", "")[:length]):
            end = one.start() + places[length - 1] + 1
            if end == one.end() or one[0][end - one.start()] == " ":
                yield one.start(), end, "iban"


_FINDERS: dict[PersonalKind, Callable[[str], Iterator[Found]]] = {
    "email": _emails,
    "phone": _phones,
    "ssn": _ssns,
    "card": _cards,
    "iban": _ibans,
}
