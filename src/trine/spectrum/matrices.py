"""Which matrices a checkpoint's tensors hold, under which names. Headers alone.

A 2-D tensor is one matrix. A 3-D tensor of stacked experts (its name holds `experts`) is one per expert, and two where
gate and up are stacked by rows; each has its per-expert Hub name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from trine.errors import BadInput
from trine.weights.index import TensorInfo

_LAYER = re.compile(r"^(.*?)(?:^|\.)(layers?|h|blocks?)\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"\.experts\.(\d+)(?=\.)")
_READ = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Matrix:
    """One matrix: its name and where its values lie."""

    name: str
    shape: tuple[int, int]
    tensor: str
    index: int | None = None
    """Which expert of a 3-D tensor."""
    rows: tuple[int, int] | None = None
    """Which rows of that expert's matrix, [first, last)."""

    @property
    def parameters(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Place:
    """Where in a model a matrix stands, read off its name."""

    type: str
    """The name without layer, expert number and `.weight`: `self_attn.q_proj`, `mlp.experts.up_proj`, `lm_head`."""
    layer: int | None
    expert: int | None


def place(name: str) -> Place:
    """`model.layers.3.mlp.experts.7.up_proj.weight` is (`mlp.experts.up_proj`, 3, 7).

    The stack's own name stays in the type unless it is `model.layers`, so that two stacks are not ranked as one.
    """
    layer, rest = None, name.removesuffix(".weight")
    if found := _LAYER.match(rest):
        stack = f"{found[1]}.{found[2]}".lstrip(".")
        layer, rest = int(found[3]), found[4] if stack == "model.layers" else f"{stack}.{found[4]}"
    expert = None
    if found := _EXPERT.search(f".{rest}"):
        expert = int(found[1])
        rest = rest.replace(f"experts.{expert}.", "experts.", 1)
    return Place(rest, layer, expert)


def matrices(tensors: Mapping[str, TensorInfo]) -> tuple[list[Matrix], list[str]]:
    """Every matrix in the order of the files, and the names of tensors of other shapes (norms, biases, kernels).

    Raises BadInput for a matrix stored in a type that has to be dequantised first, and when two have one name.
    """
    found: list[Matrix] = []
    others = []
    for name in sorted(tensors, key=lambda one: (tensors[one].file.name, tensors[one].offset)):
        info = tensors[name]
        stacked = len(info.shape) > 2 and "experts" in name.split(".")
        if len(info.shape) != 2 and not stacked:
            others.append(name)
            continue
        if info.dtype not in _READ or len(info.shape) > 3:
            raise BadInput(
                f"{info.file}: '{name}' is stored as {info.dtype} {list(info.shape)}; expected "
                f"{', '.join(_READ)} and 2 or 3 dimensions. Scan the checkpoint from which this one was quantised"
            )
        rows, columns = list(info.shape)[-2:]
        made = _experts(name, info.shape, tensors) if stacked else [Matrix(name, (rows, columns), name)]
        found += [one for one in made if one.parameters]
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"'{twice}' is stored twice: per expert and stacked")
    return found, others


def _experts(name: str, shape: tuple[int, ...], tensors: Mapping[str, TensorInfo]) -> list[Matrix]:
    """The matrices of a stack. Gate and up are told apart where the down projection shows that they lie in rows."""
    head, _, kind = name.removesuffix(".weight").rpartition(".")
    experts, rows, columns = shape[0], shape[1], shape[2]
    down = tensors.get(name.replace("gate_up_proj", "down_proj"))
    if kind == "gate_up_proj" and down is not None and down.shape == (experts, columns, rows // 2):
        parts = [("gate_proj", 0, rows // 2), ("up_proj", rows // 2, rows)]
    else:
        parts = [(kind, 0, rows)]
    return [
        Matrix(f"{head}.{e}.{part}.weight", (end - first, columns), name, e, (first, end))
        for e in range(experts)
        for part, first, end in parts
    ]
