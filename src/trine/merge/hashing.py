"""SHA-256 of what is read and written, computed beside the merge.

The hash of an input shows that it is what its manifest, or a list of checksums, says; without either it is recorded,
so that a merge that goes on later knows whether its inputs are still the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np

from trine.errors import BadInput, TrineError
from trine.merge.jobs import Job, Plan
from trine.merge.journal import Journal
from trine.merge.layout import OutputFile
from trine.merge.models import checksums_in
from trine.merge.source import read_into
from trine.native.sha256 import hash_files

_PIECE = 1 << 22
_FLUSH_BYTES = 256 << 20


def read_checksums(path: Path) -> tuple[tuple[str, str], ...]:
    """(file, SHA-256) pairs of a list as `sha256sum` writes it. Raises BadInput naming the first wrong line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        found = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if not found:
            raise BadInput(f"{path}:{number}: expected 64 hex digits, two spaces and a file, as sha256sum writes them")
        pairs.append((found[2], found[1].lower()))
    return tuple(pairs)


class InputHashes:
    """SHA-256 of every input file, compared with what is known of it."""

    def __init__(
        self, plan: Plan, checksums: tuple[tuple[str, str], ...], journal: Journal, stop: threading.Event
    ) -> None:
        self.journal, self.stop = journal, stop
        self.found: dict[str, str] = {}
        self.expected = _expected(plan, checksums)
        self.computed = plan.computed
        self._left = iter(plan.files)

    def run(self) -> None:
        """Hash files until none is left; several threads may. Raises TrineError when one is not what it should be."""
        hash_files(self._left, self._found, self.stop.is_set)

    def _found(self, path: Path, found: str) -> None:
        expected = self.expected.get(path)
        if expected not in (None, found):
            raise TrineError(f"{path}: its SHA-256 is {found}, expected {expected}: the file is damaged")
        self.journal.input(str(path.resolve()), found)
        if path.parent != self.computed:
            self.found[str(path)] = found

    def notes(self) -> list[str]:
        """`inputs unverified`, said once, when some file was compared with nothing."""
        files = [Path(file) for file in self.found]
        open_ones = [file for file in files if file not in self.expected]
        if not open_ones:
            return []
        some = f" ({len(open_ones)} of {len(files)} files)" if len(open_ones) < len(files) else ""
        return [f"inputs unverified{some}: no manifest or --checksums says what they should be; hashes are recorded"]


def _expected(plan: Plan, checksums: tuple[tuple[str, str], ...]) -> dict[Path, str]:
    """What is known of the plan's files. A name in a list is a path, or the end of one."""
    listed = {folder: checksums_in(folder) for folder in {path.parent for path in plan.files}}
    known = {}
    for path in plan.files:
        if path.name in listed[path.parent]:
            known[path] = listed[path.parent][path.name]
        for name, sha256 in checksums:
            if path.resolve().as_posix().endswith("/" + name.removeprefix("./").lstrip("/")):
                known[path] = sha256
    return known


class OutputHashes:
    """SHA-256 of the output's files, following the tensors as they are done, and their way to the disk."""

    def __init__(self, files: list[OutputFile], stop: threading.Event) -> None:
        self.files, self.stop = files, stop
        self.found: dict[str, str] = {}
        self._done: set[str] = set()
        self._news = threading.Condition()

    def ready(self, job: Job) -> None:
        """A tensor's bytes are in the file."""
        with self._news:
            self._done.add(job.name)
            self._news.notify()

    def wake(self) -> None:
        """Let a waiting thread look at `stop`."""
        with self._news:
            self._news.notify_all()

    def run(self, handles: dict[str, int]) -> None:
        """Hash every file, each part as soon as it is there."""
        buffer = np.empty(_PIECE, np.uint8)
        for file in self.files:
            digest, handle, flushed = hashlib.sha256(file.header), handles[file.name], 0
            for job, place in file.places:
                if not self._wait(job):
                    return
                for start in range(place, place + job.bytes, _PIECE):
                    piece = buffer[: min(_PIECE, place + job.bytes - start)]
                    read_into(handle, piece, start, Path(file.name))
                    digest.update(piece.data)
                if place + job.bytes - flushed >= _FLUSH_BYTES:
                    threading.Thread(target=_flush, args=(handle,), daemon=True).start()
                    flushed = place + job.bytes
            self.found[file.name] = digest.hexdigest()

    def _wait(self, job: Job) -> bool:
        with self._news:
            self._news.wait_for(lambda: job.name in self._done or self.stop.is_set())
            return job.name in self._done


def _flush(handle: Any) -> None:
    """Send what is written so far to the disk; the flush that counts comes before the manifest."""
    try:
        os.fdatasync(handle)
    except OSError:
        return
