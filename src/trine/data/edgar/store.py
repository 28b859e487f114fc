"""Files by their SHA-256, and a journal of which path gave which: a folder that several processes fill together.

    objects/ab/ab12...cd.txt    the bytes, named by their SHA-256; one file however many paths hold them
    fetched.jsonl               per path one line: path, base, sha256, bytes, file

A file appears whole or not at all, and its line comes after it. Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trine.errors import BadInput
from trine.manifest import fsync_path, sha256_file

JOURNAL, OBJECTS = "fetched.jsonl", "objects"
_ENDING = re.compile(r"(\.[A-Za-z0-9]{1,5})(\.gz)?$")
_CLAIM_SPACE = 1 << 40


class Store:
    """The folder of what was fetched."""

    def __init__(self, folder: Path) -> None:
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"{folder}: is a file, expected a folder for what is fetched")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).is_file():
            raise BadInput(f"{folder}: is not empty and holds no {JOURNAL}, so filings are not mixed into it")
        (folder / OBJECTS).mkdir(parents=True, exist_ok=True)
        self.folder, self.entries = folder, dict[str, dict[str, Any]]()
        self._journal = (folder / JOURNAL).open("a+b")
        self._claims = (folder / ".claims").open("a+b")
        self._read, self._numbers, self._sound = 0, itertools.count(), set[str]()
        self._remove_stale()

    def close(self) -> None:
        self._journal.close()
        self._claims.close()

    def find(self, path: str) -> Path | None:
        """The file that `path` gave, when it is there and its SHA-256 is right."""
        self._catch_up()
        entry = self.entries.get(path)
        if entry is None:
            return None
        file = self.folder / entry["file"]
        if entry["file"] not in self._sound:
            if not file.is_file() or file.stat().st_size != entry["bytes"] or sha256_file(file) != entry["sha256"]:
                return None
            self._sound.add(entry["file"])
        return file

    @contextmanager
    def temporary(self) -> Iterator[IO[bytes]]:
        """A file to download into; it is gone after the block unless `add` took it."""
        name = self.folder / OBJECTS / f".tmp-{os.getpid()}-{next(self._numbers)}"
        try:
            with name.open("w+b") as file:
                yield file
        finally:
            name.unlink(missing_ok=True)

    def add(self, path: str, base: str, file: IO[bytes], digest: str) -> Path:
        """Keep what was downloaded for `path` and write its line, unless the same line stands there."""
        file.flush()
        os.fsync(file.fileno())
        ending = _ENDING.search(path)
        target = self.folder / OBJECTS / digest[:2] / f"{digest}{ending[0].lower() if ending else ''}"
        target.parent.mkdir(exist_ok=True)
        Path(file.name).replace(target)
        fsync_path(target.parent)
        size = target.stat().st_size
        relative = target.relative_to(self.folder).as_posix()
        with self._locked():
            self._catch_up()
            entry = {"path": path, "base": base, "sha256": digest, "bytes": size, "file": relative}
            if self.entries.get(path) != entry:
                self._append(entry)
        self._sound.add(relative)
        return target

    def claim(self, path: str) -> bool:
        """Whether this process is the one that downloads `path` now; a claim ends with its process."""
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(path))
        except OSError:
            return False
        return True

    def release(self, path: str) -> None:
        fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, _place(path))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._journal, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._journal, fcntl.LOCK_UN)

    def _append(self, entry: dict[str, Any]) -> None:
        """Write a line under the lock; what a killed process left of one is ended first."""
        size = self._journal.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(self._journal.fileno(), 1, size - 1) != b"\n"
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        self._journal.write(b"\n" + line if torn else line)
        self._journal.flush()
        os.fsync(self._journal.fileno())
        self.entries[entry["path"]] = entry

    def _catch_up(self) -> None:
        """Read the whole lines that were added since the last look."""
        self._journal.seek(self._read)
        for line in self._journal.read().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            self._read += len(line)
            try:
                entry = json.loads(line)
                self.entries[entry["path"]] = {
                    name: entry[name] for name in ("path", "base", "sha256", "bytes", "file")
                }
            except (ValueError, KeyError, TypeError):
                continue

    def _remove_stale(self) -> None:
        """Downloads of processes that are gone."""
        for leftover in (self.folder / OBJECTS).glob(".tmp-*"):
            owner = leftover.name.split("-")[1]
            if not (owner.isdigit() and Path(f"/proc/{owner}").exists()) or int(owner) == os.getpid():
                leftover.unlink(missing_ok=True)


def _place(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % _CLAIM_SPACE
