"""What a merge has done, on disk, so that the same command goes on after it was killed.

A line per event: a checksum, a space, JSON. The first line says what is merged; a tensor's line is written after its
bytes, with their CRC-32, and is believed only when the bytes in the output still have it. A line that is cut or
damaged is dropped and noted, and what it said is done again.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

from trine.errors import BadInput

JOURNAL = "journal.jsonl"


class Journal:
    """The events of a merge, read once and appended to."""

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        """Open or begin the journal. Raises BadInput when the one there began from something else."""
        self.path = folder / JOURNAL
        self.done: dict[str, int] = {}
        self.hashed: dict[str, str] = {}
        self.notes: list[str] = []
        """What was damaged and is done again."""
        fresh = not self.path.exists()
        if not fresh:
            fresh = self._read(head)
        self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | (os.O_TRUNC if fresh else 0), 0o644)
        if fresh:
            self._write(head)
        elif not self.path.read_bytes().endswith(b"\n"):
            os.write(self._handle, b"\n")

    def _read(self, head: dict[str, Any]) -> bool:
        """Take in the events; True when nothing of them can be used."""
        events, damaged = [], 0
        for line in self.path.read_bytes().split(b"\n"):
            check, _, text = line.partition(b" ")
            if not line:
                continue
            if check != b"%08x" % zlib.crc32(text):
                damaged += 1
                continue
            events.append(json.loads(text))
        if not events or "plan" not in events[0]:
            if damaged:
                self.notes.append(f"{JOURNAL}: its first line was damaged; the merge began again")
            return True
        if damaged:
            self.notes.append(f"{JOURNAL}: {damaged} damaged line(s); what they said was done again")
        _same(self.path, events[0], head)
        for event in events[1:]:
            if "tensor" in event:
                self.done[event["tensor"]] = event["crc32"]
            else:
                self.hashed[event["input"]] = event["sha256"]
        return False

    def _write(self, event: dict[str, Any]) -> None:
        text = json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()
        os.write(self._handle, b"%08x %s\n" % (zlib.crc32(text), text))

    def tensor(self, name: str, crc32: int) -> None:
        """A tensor's bytes are in the output."""
        self._write({"tensor": name, "crc32": crc32})

    def input(self, file: str, sha256: str) -> None:
        """An input file was hashed. Raises BadInput when it had another hash before."""
        before = self.hashed.get(file)
        if before is not None and before != sha256:
            raise BadInput(f"{file}: changed since this merge began; remove {self.path.parent} to begin again")
        if before is None:
            self.hashed[file] = sha256
            self._write({"input": file, "sha256": sha256})

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def _same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    again = f"remove {path.parent} to begin again"
    for file, stamp in now["inputs"].items():
        if before["inputs"].get(file, stamp) != stamp:
            raise BadInput(f"{file}: changed since this merge began; {again}")
    if before != now:
        raise BadInput(f"{path.parent}: holds a merge that began from another config or options; {again}")
