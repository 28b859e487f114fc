"""Tensors by name out of a folder of safetensors; each is mapped from its file and copied when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trine.errors import BadInput
from trine.weights.index import TensorInfo, read_index


class TensorReader:
    """The tensors of a model folder. One file is open at a time, so memory stays near one tensor."""

    def __init__(self, folder: Path) -> None:
        """Raises BadInput as `read_index` does."""
        self.folder = folder
        self.tensors: dict[str, TensorInfo] = read_index(folder)
        self._file: Path | None = None
        self._handle: Any = None

    def read(self, name: str) -> Tensor:
        """The tensor as stored, on the CPU. Raises BadInput when its file cannot be read."""
        info = self.tensors[name]
        try:
            if info.file != self._file:
                self._handle = safe_open(info.file, framework="pt", device="cpu")
                self._file = info.file
            tensor = self._handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{info.file}: '{name}' cannot be read ({error})") from None
        assert isinstance(tensor, torch.Tensor)
        return tensor
