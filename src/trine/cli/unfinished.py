"""The completions of `trine generate --out FILE` as they come: FILE.partial, until FILE is whole.

Each ended completion is a line behind a first line that says which request it belongs to. The same command again goes
on where it was stopped; the texts are those of one that was not, because a text depends on no other.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trine.errors import BadInput
from trine.manifest import write_file

if TYPE_CHECKING:
    from trine.completion import Completion


def partial_path(out: Path) -> Path:
    """Where the completions are until `out` is whole."""
    return out.with_name(out.name + ".partial")


class Unfinished:
    """Ended completions of one request on disk."""

    def __init__(self, out: Path, request: dict[str, Any]) -> None:
        """`request` is all that decides the texts, as JSON takes it. Raises BadInput when the file is another's."""
        self.path = partial_path(out)
        self._first = json.dumps({"request": hashlib.sha256(json.dumps(request).encode()).hexdigest()})
        self._lines = self._read() if self.path.exists() else []
        write_file(self.path, "".join(line + "\n" for line in (self._first, *self._lines)))
        self._file = self.path.open("a")

    def _read(self) -> list[str]:
        """The completions' lines; a last one that is not whole is left out."""
        first, *rest = self.path.read_text(errors="replace").split("\n")[:-1] or [""]
        if first != self._first:
            raise BadInput(
                f"{self.path}: holds {len(rest)} completions of another command, stopped before its end; "
                "run that one again to end it, or remove the file"
            )
        return rest

    def done(self) -> list[Completion]:
        """What a stopped run left."""
        from trine.completion import Completion

        return [Completion(**json.loads(line)) for line in self._lines]

    def add(self, one: Completion) -> None:
        """Keep a completion for good."""
        self._file.write(json.dumps(asdict(one)) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
