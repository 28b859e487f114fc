"""What a run leaves as it is: `train.only` and `train.lora`, told for the whole model and for a few of its layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from trine.model.causal import CausalModel
from trine.model.hf import LanguageModel
from trine.model.shape import Shape, build
from trine.train.config import LoraConfig, TrainConfig
from trine.train.freeze import freeze, held_dtype, resolve, resolve_names
from trine.train.lora import LoraFactors, resolve_targets
from trine.train.setup import pick_device
from trine.weights.index import read_index
from trine.weights.selected import read_selection

_LAYER = re.compile(r"\.(\d+)\.")


class Frozen(BaseModel):
    """What is trained of a model of which the rest is frozen."""

    model_config = ConfigDict(frozen=True)
    held: str
    """Type of the frozen matrices."""
    mapped: bool = False
    """Whether they stay in the pages of their file, which are no memory of the process's own."""
    names: tuple[str, ...] = ()
    """Of the selected parameters."""
    lora: LoraConfig | None = None
    """With its targets by their whole names."""

    def within(self, kept: Sequence[int]) -> Frozen:
        """The same of a model with the layers `kept` alone."""
        lora = self.lora
        if lora is not None:
            lora = lora.model_copy(update={"targets": _renumbered(lora.targets or (), kept)})
        return self.model_copy(update={"names": _renumbered(self.names, kept), "lora": lora})

    def layers(self) -> set[int]:
        """Layers with something to train."""
        targets = () if self.lora is None else self.lora.targets or ()
        return {int(found[1]) for name in (*self.names, *targets) if (found := _LAYER.search(name))}

    def apply(self, model: LanguageModel) -> None:
        """Bring a model on the meta device into the state in which a run holds it."""
        for parameter in model.parameters():
            parameter.data = parameter.data.to(getattr(torch, self.held))
        if self.lora is not None:
            LoraFactors(model, self.lora, resolve_targets(self.lora, model), Path(), 0)
        else:
            freeze(model, resolve_names(dict.fromkeys(self.names, 0), Path("train.only"), model))


def _renumbered(names: Sequence[str], kept: Sequence[int]) -> tuple[str, ...]:
    """Names of kept layers by their new numbers, and names outside the layers."""
    found = list[str]()
    for name in names:
        layer = _LAYER.search(name)
        if layer is None:
            found.append(name)
        elif int(layer[1]) in kept:
            found.append(f"{name[: layer.start(1)]}{kept.index(int(layer[1]))}{name[layer.end(1) :]}")
    return tuple(found)


def frozen_part(shape: Shape, train: TrainConfig) -> Frozen | None:
    """What `train` leaves frozen of a model of `shape`; None: nothing. Raises BadInput as the run would."""
    if train.only is None and train.lora is None:
        return None
    skeleton = build(shape, "meta")
    held, mapped = "float32", False
    if train.init_from is not None:
        start = Path(train.init_from).expanduser()
        held = held_dtype(start, train.dtype)
        mapped = _stays_mapped(start, held, skeleton, train)
    if train.lora is not None:
        targets = resolve_targets(train.lora, skeleton)
        return Frozen(held=held, mapped=mapped, lora=train.lora.model_copy(update={"targets": targets}))
    path = Path(train.only or "").expanduser()
    resolve(path, skeleton)
    return Frozen(held=held, mapped=mapped, names=tuple(read_selection(path)))


def _stays_mapped(start: Path, held: str, model: LanguageModel, train: TrainConfig) -> bool:
    """Whether transformers leaves frozen matrices where the file is mapped: on CPU, in a type that needs no change."""
    stored = {one.dtype for one in read_index(start).values() if len(one.shape) > 1}
    kept = {"bfloat16": {"BF16"}, "float32": {"F32"}}[held]
    return isinstance(model, CausalModel) and stored == kept and pick_device(train.device).type == "cpu"
