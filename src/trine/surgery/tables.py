"""Tables with a row per token, as views of their files: reading and writing them takes no memory of its own."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trine.errors import BadInput
from trine.weights.index import TensorInfo

TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""torch's types by safetensors' names."""
_BLOCK_BYTES = 64 << 20


def mapped(info: TensorInfo) -> Tensor:
    """A tensor's numbers where they lie in its file; changes to them are not written."""
    raw = np.memmap(info.file, np.uint8, "c", info.offset, (info.bytes,))
    return torch.from_numpy(raw).view(TYPES[info.dtype]).view(info.shape)


def created(path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """A new safetensors file of tensors by (safetensors type, shape): what is written into them is in the file."""
    entries, place = {}, 0
    for name, (kind, shape) in shapes.items():
        end = place + int(np.prod(shape)) * TYPES[kind].itemsize
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk is said here; a mapped page without a place would kill
            os.posix_fallocate(file.fileno(), 0, 8 + len(text) + place)
        file.write(struct.pack("<Q", len(text)) + text)
    raw = torch.from_numpy(np.memmap(path, np.uint8, "r+", 8 + len(text), (place,)))
    tensors = {}
    for name, (kind, shape) in shapes.items():
        begin, end = entries[name]["data_offsets"]
        tensors[name] = raw[begin:end].view(TYPES[kind]).view(shape)
    return tensors


def block_rows(width: int) -> int:
    """Rows of fp32 that are worked on at a time."""
    return max(1, _BLOCK_BYTES // (4 * width))


def mean_row(table: Tensor, info: TensorInfo, name: str) -> Tensor:
    """The mean of a table's rows in fp32. Raises BadInput naming the first row that holds NaN or infinity."""
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    step = block_rows(table.shape[1])
    for start in range(0, len(table), step):
        block = table[start : start + step].double()
        if not torch.isfinite(block).all():
            wrong = (~torch.isfinite(block).all(1)).nonzero()[:, 0] + start
            raise BadInput(
                f"{info.file}: '{name}': row {int(wrong[0])} holds NaN or infinity"
                + (f", and {len(wrong) - 1} more rows near it" if len(wrong) > 1 else "")
            )
        total += block.sum(0)
    return (total / len(table)).float()
