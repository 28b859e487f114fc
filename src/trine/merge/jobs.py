"""What a plan is made of: output tensors, the tensors that go into each, and what else a result needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trine.merge.adapter import LowRank
from trine.merge.config import ModelReference
from trine.merge.dtypes import STORED
from trine.merge.gather import Gather
from trine.merge.models import Model
from trine.merge.reading import Recipe
from trine.weights.index import TensorInfo


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model that goes into an output tensor."""

    model: ModelReference
    name: str
    info: TensorInfo
    adapter: LowRank | None = None
    """What is added to it."""
    gather: Gather | None = None
    """The rows that are read in its place: its own in another order, or those of several models' tables."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is read for it."""
        if self.gather is None:
            return self.info.shape
        return self.gather.shape or (self.gather.rows.count, *self.info.shape[1:])

    @property
    def pieces(self) -> tuple[TensorInfo, ...]:
        """Everything of files that is read for it."""
        if self.gather is not None:
            return tuple(one for i in self.gather.rows.used for one in self.gather.tables[i].pieces)
        return (self.info, *((self.adapter.down, self.adapter.up) if self.adapter else ()))

    @property
    def change(self) -> Any:
        """What is done to it on reading, as plain values."""
        rows = self.gather.rows.digest if self.gather else None
        return [rows, self.adapter.scale if self.adapter else None]


@dataclass(frozen=True)
class Job:
    """One output tensor."""

    name: str
    method: str
    """The recipe's; passthrough for a tensor that too few models have; copy for whole numbers, which must be equal."""
    shape: tuple[int, ...]
    stored: str
    """Type in the output, as safetensors names it."""
    work: str
    """Type that inputs have while mergekit's rounding is followed, and the widest of the arithmetic."""
    models: tuple[Tensor, ...]
    base: Tensor | None
    each: tuple[dict[str, Any], ...]
    shared: dict[str, Any]

    @property
    def copied(self) -> bool:
        """Whether bytes are copied, not merged."""
        return self.method == "copy"

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Every tensor that is read."""
        return (*self.models, *((self.base,) if self.base else ()))

    @property
    def bytes(self) -> int:
        """Bytes in the output."""
        return math.prod(self.shape) * (STORED[self.stored].itemsize if self.stored in STORED else self._itemsize)

    @property
    def _itemsize(self) -> int:
        info = self.inputs[0].info
        return info.bytes // max(1, math.prod(info.shape))


@dataclass
class Plan:
    """What will be merged and written."""

    recipe: Recipe
    models: dict[ModelReference, Model]
    donor: ModelReference
    """Where config and tokenizer come from."""
    jobs: list[Job] = field(default_factory=list)
    layers: list[tuple[ModelReference, int]] = field(default_factory=list)
    """For stacked slices, the model and layer that each output layer's settings come from."""
    notes: list[str] = field(default_factory=list)
    verb: str = "merge"
    """The verb of the command line that makes the result."""
    title: str | None = None
    """What the model card calls the result, where it is no merge."""
    config: dict[str, Any] | None = None
    """config.json of the result, where it is not the donor's."""
    generation: dict[str, Any] | None = None
    """generation_config.json of the result, where it is not the donor's."""
    tokenizer: Path | None = None
    """The folder that the tokenizer comes from, when not the donor's."""
    written: dict[str, str] = field(default_factory=dict)
    """Small files of the result by name, where they are no copies."""
    computed: Path | None = None
    """A folder of tensors that were computed for this plan, which the record does not count as an input."""
    sources: dict[str, str] = field(default_factory=dict)
    """SHA-256 of files that such tensors were computed from."""
    aligned: bool = False
    """Whether experts were put in the order of the reference's."""
    stacked: bool = False
    """Whether the experts of a layer were stacked."""

    @property
    def read_bytes(self) -> int:
        """Bytes of the inputs, each tensor once."""
        pieces = (piece for job in self.jobs for tensor in job.inputs for piece in tensor.pieces)
        return sum({(one.file, one.offset): one.bytes for one in pieces}.values())

    @property
    def write_bytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(job.bytes for job in self.jobs)

    @property
    def files(self) -> list[Path]:
        """Every file of weights that is read, in the order of first use."""
        return list(dict.fromkeys(one.file for job in self.jobs for tensor in job.inputs for one in tensor.pieces))
