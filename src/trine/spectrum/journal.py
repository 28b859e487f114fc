"""What of a scan is finished, on disk, so that it goes on after it was stopped and ranks meet without talking.

Beside the output lies one file per rank: its first line says what is scanned, each other line one finished matrix.
Whoever scans takes up what all files hold, whatever number of ranks wrote them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO, Any

from trine.errors import BadInput


def journal_of(out: Path, rank: int = 0) -> Path:
    """Where a rank of an unfinished scan keeps what it finished."""
    return out.with_name(f".{out.name}.journal" + (f".{rank}" if rank else ""))


def journals(out: Path) -> list[Path]:
    """The journals of every rank that are there."""
    first = journal_of(out)
    others = [one for one in out.parent.iterdir() if one.name.startswith(f"{first.name}.") and one.suffix[1:].isdigit()]
    return [one for one in (first, *sorted(others)) if one.is_file()]


def take_up(out: Path, head: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What every journal says is finished, by matrix. A line that was cut is left out.

    Raises BadInput for a journal that is not of this scan.
    """
    done: dict[str, dict[str, Any]] = {}
    for path in journals(out):
        try:
            whole = path.read_bytes().rpartition(b"\n")[0]
        except FileNotFoundError:
            continue
        if not whole:
            continue
        try:
            first, *events = (json.loads(line) for line in whole.split(b"\n"))
        except ValueError as error:
            raise BadInput(f"{path}: is damaged ({error}); remove it to scan its matrices again") from None
        if first != head:
            raise BadInput(
                f"{path}: of another model or measure, or files changed since; remove it, or name another --out"
            )
        done |= {event.pop("name"): event for event in events}
    return done


class Journal:
    """One rank's file; begun when its first matrix is written, a cut line at its end being dropped."""

    def __init__(self, out: Path, head: dict[str, Any], rank: int = 0) -> None:
        self._path, self._head = journal_of(out, rank), head
        self._lines: IO[bytes] | None = None

    def write(self, name: str, event: dict[str, Any]) -> None:
        """Append a finished matrix."""
        if self._lines is None:
            whole = self._path.read_bytes().rpartition(b"\n")[0] if self._path.exists() else b""
            self._lines = self._path.open("ab")
            os.truncate(self._path, len(whole) + 1 if whole else 0)
            if not whole:
                self._lines.write(json.dumps(self._head).encode() + b"\n")
        self._lines.write(json.dumps({"name": name, **event}, allow_nan=False).encode() + b"\n")
        self._lines.flush()

    def close(self) -> None:
        """Nothing more is written."""
        if self._lines is not None:
            self._lines.close()
