"""Parts of a long computation, kept on disk as they are done."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor

from trine.manifest import write_file


class Pieces:
    """Parts of a long computation, kept beside `out` as they are done, so that a killed one goes on."""

    def __init__(self, out: Path, stamp: str) -> None:
        """`stamp`: what they are computed from; those of another stamp are dropped."""
        self.folder = out.with_name(f".{out.name}.pieces")
        head = self.folder / "from"
        if self.folder.exists() and not (head.is_file() and head.read_text() == stamp):
            shutil.rmtree(self.folder)
        self._head, self._stamp = head, stamp

    def get(self, name: str, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The tensors that `make` returned when it was called for this name; a damaged piece is made again."""
        path = self.folder / name
        if path.is_file():
            check, data = path.read_bytes()[:4], path.read_bytes()[4:]
            if check == zlib.crc32(data).to_bytes(4, "big"):
                found = load(data)
                return found["0"], found["1"]
        made = make()
        if not self._head.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self._head, self._stamp)
        data = save({str(i): one.contiguous() for i, one in enumerate(made)})
        write_file(path, zlib.crc32(data).to_bytes(4, "big") + data)
        return made

    def remove(self) -> None:
        """Drop all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)
