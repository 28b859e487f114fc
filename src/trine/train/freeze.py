"""Training a selection of a model's matrices (`train.only`): read, checked against the model, put into effect.

A frozen matrix holds no gradient, no optimizer state and no fp32 copy: it stays in the type its folder stores, where
that is the compute type. Where only some experts of a layer are trained, the stacked parameter is split once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trine.errors import BadInput, nearest
from trine.manifest import digest_of
from trine.model.afmoe import Afmoe
from trine.model.blocks import frozen_blocks
from trine.model.causal import CausalModel
from trine.model.hf import LanguageModel
from trine.moe.experts import Experts
from trine.weights.index import read_index
from trine.weights.names import hub_parts
from trine.weights.selected import read_selection

_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Trained:
    """What is trained, by the model's own parameter names; everything else is frozen."""

    whole: frozenset[str]
    parts: dict[str, tuple[bool, ...]]
    """Of a stacked parameter that is trained in part: whether each of its matrices is, in the order of `hub_parts`."""

    @property
    def digest(self) -> str:
        """Of what is trained."""
        return digest_of({"whole": sorted(self.whole), "parts": {k: list(v) for k, v in sorted(self.parts.items())}})


def resolve(path: Path, model: LanguageModel) -> Trained:
    """The selection in `path` by the parameters of `model`, which may be on the meta device.

    Raises BadInput for a name that the model does not have, with its line and the nearest one.
    """
    return resolve_names(read_selection(path), path, model)


def resolve_names(names: dict[str, int], path: Path, model: LanguageModel) -> Trained:
    """The same of names and their lines in `path`."""
    places = dict[str, tuple[str, int | None]]()
    stacks = dict[str, list[bool]]()
    for name, parameter in model.named_parameters():
        places[name] = name, None
        parts = hub_parts(name, tuple(parameter.shape))
        if parts[0].name != name:
            stacks[name] = [False] * len(parts)
            places |= {part.name: (name, i) for i, part in enumerate(parts)}
    if model.output_weight is model_embedding(model):
        places[_HEAD] = next(n for n, p in model.named_parameters() if p is model.output_weight), None
    whole = set[str]()
    for name, line in names.items():
        if name not in places:
            raise BadInput(f"{path}:{line}: the model has no parameter '{name}'{nearest(name, places)}")
        parameter, place = places[name]
        if place is None:
            whole.add(parameter)
        else:
            stacks[parameter][place] = True
    whole |= {name for name, chosen in stacks.items() if all(chosen)}
    parts = {name: tuple(chosen) for name, chosen in stacks.items() if any(chosen) and name not in whole}
    return Trained(frozenset(whole), parts)


def model_embedding(model: LanguageModel) -> torch.Tensor:
    """The table [V, d] that turns tokens into states."""
    return model.model.embed_tokens.weight if isinstance(model, Afmoe) else model.peer.get_input_embeddings().weight


def held_dtype(folder: Path, compute: str) -> str:
    """The type to load `folder` in: the compute type where every matrix is stored in it, else float32."""
    stored = {one.dtype for one in read_index(folder).values() if len(one.shape) > 1}
    return "bfloat16" if compute == "bfloat16" and stored == {"BF16"} else "float32"


@torch.no_grad()
def freeze(model: LanguageModel, trained: Trained) -> str:
    """Freeze all of `model` but `trained`, which becomes fp32, as do vectors and routers. Returns what was done."""
    for name, parameter in list(model.named_parameters()):
        if name in trained.parts:
            module, _, key = name.rpartition(".")
            experts = model.get_submodule(module)
            assert isinstance(experts, Experts)
            experts.split(key, torch.tensor(trained.parts[name]))
            continue
        chosen = name in trained.whole
        parameter.requires_grad_(chosen)
        if chosen:
            parameter.data = parameter.data.float()
    return f"train.only: {settle(model)}"


def settle(model: LanguageModel) -> str:
    """Once it is decided what is trained: vectors and routers in fp32, and blocks that need keep nothing. Says so."""
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2 or name.endswith("router.gate.weight"):
            parameter.data = parameter.data.float()
    low = frozen_blocks(model)
    if isinstance(model, Afmoe):
        model.frozen_blocks = low
    elif isinstance(model, CausalModel) and model_embedding(model).dtype != torch.float32:
        model.widen_embeddings()
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    said = f"{count:,} of {whole:,} parameters ({count / whole:.1%}) are trained"
    return f"{said}, and the first {low} blocks keep no activations" if low else said
