"""What a folder of safetensors holds, read from headers alone: names, dtypes, shapes, files.

Nothing in a folder is trusted: file names of an index must be plain names of regular files inside the folder,
and each header is checked against the size of its file before anything is mapped. Pickles are refused.
Cost: one small read per file.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine.errors import BadInput

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_HEADER_BYTES = 100 << 20
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file's header describes it."""

    file: Path
    dtype: str
    """The format's own name: F32, BF16, ..."""
    shape: tuple[int, ...]
    bytes: int
    offset: int
    """Where its bytes begin in the file."""


def read_index(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a model folder by name: `model.safetensors`, or the shards its index names.

    Raises BadInput naming the file for a missing, damaged, foreign or unsafe one.
    """
    index = folder / INDEX
    if not index.is_file():
        return read_header(_single(folder))
    weight_map = _weight_map(index)
    headers = {name: read_header(_inside(folder, name, index)) for name in sorted(set(weight_map.values()))}
    tensors = {}
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise BadInput(f"{index}: says '{name}' is in {folder / file}, which does not hold it")
        tensors[name] = headers[file][name]
    for file, header in headers.items():
        for name in header:
            if weight_map.get(name) != file:
                raise BadInput(f"{folder / file}: holds '{name}', which {index} does not place there")
    return tensors


def read_mapping(path: Path, expected: str = "a Hugging Face model folder") -> dict[str, Any]:
    """The mapping in a JSON file. Raises BadInput for a file that is missing (`expected`: where it is) or another."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{path}: missing; expected {expected}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise BadInput(f"{path}: holds no mapping of keys")
    return values


def _single(folder: Path) -> Path:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; expected a model folder with config.json and {SINGLE}")
    if (folder / SINGLE).is_file():
        return _inside(folder, SINGLE, folder)
    pickles = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    if pickles:
        raise BadInput(
            f"{folder / pickles[0]}: pickled weights can run code when they are opened and are refused; "
            "convert them to safetensors on a machine you can spare"
        )
    raise BadInput(f"{folder}: holds neither {SINGLE} nor {INDEX}; expected a model folder")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        found = json.loads(index.read_bytes())["weight_map"]
        assert isinstance(found, dict)
        assert all(isinstance(file, str) for file in found.values())
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
        raise BadInput(f"{index}: no weight_map of tensor names to file names ({error!r:.120})") from None
    return found


def _inside(folder: Path, name: str, source: Path) -> Path:
    """`name` in `folder`, refused when it is a path or leads elsewhere (the Hub cache's blobs excepted)."""
    path = folder / name
    if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
        raise BadInput(f"{source}: names the file '{name}'; expected a plain name ending in .safetensors")
    if not path.is_file():
        raise BadInput(f"{path}: missing" + (f", though {source} names it" if source != folder else ""))
    real, home = path.resolve(), folder.resolve()
    hub_blobs = home.parent.parent / "blobs"
    if real.parent != home and not (home.parent.name == "snapshots" and real.parent == hub_blobs):
        raise BadInput(f"{path}: is a link to {real}, outside its folder; refused")
    return path


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file. Raises BadInput when header and file do not agree."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            if size < 8 or length > min(_HEADER_BYTES, size - 8):
                raise BadInput(f"{path}: not a safetensors file: {size} bytes cannot hold its header")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("the header is not a mapping")
        header.pop("__metadata__", None)
        tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
        spans = sorted(tuple(entry["data_offsets"]) for entry in header.values())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{path}: the safetensors header is damaged ({error!r:.160})") from None
    place = 0
    for begin, end in spans:
        if begin != place:
            raise BadInput(f"{path}: tensors overlap or leave a gap at byte {place} of the data")
        place = end
    if 8 + length + place != size:
        raise BadInput(f"{path}: {size} bytes, the header describes {8 + length + place}; the file is cut or padded")
    return tensors


def _tensor(path: Path, name: str, entry: dict[str, Any], data: int) -> TensorInfo:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    for n in (*shape, begin, end):
        if type(n) is not int or n < 0:
            raise ValueError(f"shape or offsets of {name}")
    if dtype not in _BITS:
        raise ValueError(f"dtype {dtype} of {name}")
    if math.prod(shape) * _BITS[dtype] != (end - begin) * 8:
        raise ValueError(f"{name}: {dtype} {shape} does not fill {end - begin} bytes")
    return TensorInfo(path, dtype, tuple(shape), end - begin, data + begin)
