"""What a verb hands back: a record for --json and a text for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shown:
    """`record` is printed with --json, `text` without."""

    record: dict[str, Any]
    text: str
