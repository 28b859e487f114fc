"""Tensors one by one into safetensors shards and their index; memory holds one shard."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

from safetensors.torch import save_file
from torch import Tensor

from trine.weights.index import INDEX, SINGLE


class TensorWriter:
    """Writes `model.safetensors`, or `model-0000i-of-0000n.safetensors` and an index when there are several."""

    def __init__(self, folder: Path, shard_bytes: int = 5_000_000_000) -> None:
        """`shard_bytes`: a shard is closed before it would grow beyond this (one tensor may)."""
        self.folder, self.shard_bytes = folder, shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._bytes = self._total = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor; it must not change until its shard is written."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._bytes + size > self.shard_bytes:
            self._flush()
        self._pending[name] = tensor.detach().contiguous()
        self._bytes += size
        self._total += size

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
            self._name_shards()

    def _flush(self) -> None:
        save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
        self._shards.append(list(self._pending))
        self._pending, self._bytes = {}, 0

    def _part(self, number: int) -> Path:
        return self.folder / f".part-{number}.safetensors"

    def _name_shards(self) -> None:
        count = len(self._shards)
        if count == 1:
            self._part(0).rename(self.folder / SINGLE)
            return
        weight_map = {}
        for number, names in enumerate(self._shards):
            file = f"model-{number + 1:05}-of-{count:05}.safetensors"
            self._part(number).rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
        (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
