"""Unquoted YAML text to values (1.2 core schema, and `_` between digits), and values to short text."""

from __future__ import annotations

import re
from typing import Any

_INT = re.compile(r"[-+]?(0o[0-7]+|0x[0-9a-fA-F]+|[0-9]+(_[0-9]+)*)")
_FLOAT = re.compile(r"[-+]?([0-9]+(_[0-9]+)*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def resolve_scalar(text: str) -> Any:
    """The value of an unquoted scalar: null, true, false, a number, or the text. ValueError: not finite."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if _NON_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if not text.lstrip("+-")[:1].isdigit() and not re.match(r"[-+]?\.[0-9]", text):
        return text
    if _INT.fullmatch(text):
        if len(text) > 40:
            raise ValueError(f"a number of {len(text)} digits is too long")
        return int(text.replace("_", ""), 0 if text.lstrip("+-")[:2] in ("0o", "0x") else 10)
    if _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"{text} is too large to be a finite number")
        return number
    return text


def shown(value: Any) -> str:
    """A value as a YAML file would show it, cut to fit a message."""
    match value:
        case None:
            text = "null"
        case bool():
            text = str(value).lower()
        case str():
            text = f"'{value}'"
        case dict():
            text = "a mapping" + (f" ({', '.join(map(str, value))})" if value else " without keys")
        case list() | tuple():
            text = f"[{', '.join(shown(one) for one in value[:20])}]" if value else "an empty list"
        case _:
            text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
