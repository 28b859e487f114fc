"""Numbers as reports write them: signs, parentheses, currencies, thousands, percents, words of scale."""

from __future__ import annotations

import re
from dataclasses import dataclass

SCALES = {"": 1.0, "percent": 0.01, "thousand": 1e3, "million": 1e6, "billion": 1e9}
_WORDS = {"%": "percent", "percents": "percent", "pct": "percent"} | {f"{one}s": one for one in SCALES if one}
_DIGITS = r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_UNITS = r"(?:us\s*)?[$€£¥]|usd|rmb|eur"
_NUMBER = re.compile(
    rf"^\s*(?P<sign>[-−–+]?)\s*(?:{_UNITS})?\s*(?P<open>\(?)\s*(?:{_UNITS})?\s*(?P<inner>[-−–]?)\s*{_DIGITS}\s*(?P<sure>%?)\s*(?P<close>\)?)\s*"
    r"(?P<words>(?:%|[a-z]+)?(?:\s+[a-z]+)?)\s*\.?\s*$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Number:
    """A value with its scale's name, as written: 12.6 million is 12.6 and million."""

    value: float
    scale: str
    decimals: int
    """Digits after the point."""
    digits: int
    """Digits that count: from the first that is not 0."""

    @property
    def plain(self) -> float:
        return self.value * SCALES[self.scale]


def read_number(text: str) -> Number | None:
    """A text that is a number, with or without scale; None for any other. Parentheses mean less than zero."""
    found = _NUMBER.match(text)
    if not found or bool(found["open"]) != bool(found["close"]):
        return None
    scale = "percent" if found["sure"] else ""
    for word in found["words"].lower().split():
        named = _WORDS.get(word, word)
        if named not in SCALES or (scale and named != scale):
            return None
        scale = named
    digits = found["digits"].replace(",", "")
    negative = found["sign"] not in ("", "+") or found["open"] or found["inner"]
    value = -float(digits) if negative else float(digits)
    decimals = len(digits.partition(".")[2])
    return Number(value, scale, decimals, len(digits.replace(".", "").lstrip("0")))


def first_number(text: str) -> float | None:
    """The first number in a table's cell, such as `$ 2457` or `-4.1 ( 4.1 )`, a percent divided by 100."""
    found = re.search(rf"(?P<sign>[-−–(]?)\s*[$€£]?\s*(?P<inner>[-−–]?)\s*{_DIGITS}\s*(?P<sure>%?)", text)
    if not found:
        return None
    value = float(found["digits"].replace(",", "")) * (0.01 if found["sure"] else 1)
    return -value if found["sign"] or found["inner"] else value
