"""Training low-rank adapters (`train.lora`): targets checked, factors put into the model by peft, written and read.

All else is frozen and stays in the type that its folder stores, where that is the compute type. Initial factors are as
peft's: A uniform within 1 / sqrt(in), here drawn from a generator keyed by its name, and B zero.
"""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trine.errors import BadInput, TrineError, nearest
from trine.model.adapter import CONFIG, PREFIX, WEIGHTS
from trine.model.afmoe import Afmoe
from trine.model.blocks import blocks
from trine.model.hf import LanguageModel
from trine.model.init import keyed_generator
from trine.moe.linear import ADAPTER
from trine.train.config import LoraConfig
from trine.train.freeze import settle
from trine.weights.names import is_stacked


def resolve_targets(lora: LoraConfig, model: LanguageModel) -> tuple[str, ...]:
    """Names of the linear layers that get factors; `model` may be on the meta device.

    Raises BadInput for a target that is none, saying why where it is an expert or a router, or with the nearest name.
    """
    linear = _linear_layers(model)
    if not linear:
        raise BadInput("train.lora: the model has no linear layer of torch in its blocks")
    if lora.targets is None:
        return tuple(linear)
    found = set[str]()
    for target in lora.targets:
        chosen = [name for name in linear if name == target or name.endswith(f".{target}")]
        if not chosen:
            raise BadInput(f"train.lora.targets: '{target}' {_why_not(target, model, linear)}")
        found |= set(chosen)
    return tuple(name for name in linear if name in found)


def _linear_layers(model: LanguageModel) -> list[str]:
    """Linear layers in the blocks but routers, in order."""
    inside = {id(module) for block in blocks(model) for module in block.modules()}
    named = ((name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear) and id(one) in inside)
    return [name for name, _ in named if not name.endswith("router.gate")]


def _why_not(target: str, model: LanguageModel, linear: list[str]) -> str:
    if any(is_stacked(name) and f".{target}." in f".{name}." for name, _ in model.named_parameters()):
        return (
            "are experts, held as stacked matrices: a low-rank change of a stack needs the whole stack's product and "
            "gradient, which is what LoRA is to save; train them by train.only, or leave them out"
        )
    if target.endswith(("router", "router.gate")):
        return "decides where tokens go and is not adapted; leave it out"
    ends = {name.split(".", 3)[-1] for name in linear} | {name.rpartition(".")[2] for name in linear}
    return f"is the end of no linear layer's name in the blocks{nearest(target, ends)}"


class LoraFactors:
    """The factors in a model being trained, by the names that peft saves them under."""

    def __init__(self, model: LanguageModel, lora: LoraConfig, targets: tuple[str, ...], base: Path, seed: int) -> None:
        """Put them into `model` and freeze all else. Raises TrineError when peft is missing."""
        self._layers = _inject(model, lora, targets)
        wholes, parameters = _as_peft_says(model, targets)
        self._config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(base.resolve()),
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": 0.0 if parameters else lora.dropout,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": wholes,
        } | ({"target_parameters": parameters} if parameters else {})
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                _fill(name, tensor, seed)
        if isinstance(model, Afmoe):
            model.draws = lora.dropout > 0
        self.said = f"train.lora: {settle(model)}"

    def tensors(self) -> dict[str, Tensor]:
        """A [r, in] and B [out, r] of every layer, fp32, sharing memory."""
        return {
            f"{PREFIX}{name}.{kind}.weight": getattr(layer, kind)[ADAPTER].weight.detach()
            for name, layer in self._layers.items()
            for kind in ("lora_A", "lora_B")
        }

    def write(self, folder: Path) -> None:
        """Write the adapter into `folder` as peft saves one."""
        save_file(self.tensors(), folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(self._config, indent=2) + "\n")

    def read(self, folder: Path) -> None:
        """Take over what `write` wrote."""
        held = load_file(folder / WEIGHTS)
        for name, tensor in self.tensors().items():
            tensor.copy_(held[name])


def _inject(model: LanguageModel, lora: LoraConfig, targets: tuple[str, ...]) -> dict[str, Any]:
    """peft's layers around the targets, by their names."""
    try:
        peft: Any = import_module("peft")
    except ImportError as error:
        raise TrineError(f"train.lora: {error}; install 'trine[lora]'") from None
    root, prefix = (model.model, "model.") if isinstance(model, Afmoe) else (model.peer, "")
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[name.removeprefix(prefix) for name in targets],
    )
    peft.inject_adapter_in_model(config, root)
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in targets}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    for layer in layers.values():
        layer.cast_input_dtype_enabled = False
        for kind in (layer.lora_A, layer.lora_B):
            kind.float()
    return layers


def _as_peft_says(model: LanguageModel, targets: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The targets as `target_modules` and `target_parameters` of peft's config.

    On AFMoE peft 0.21 takes every module named gate_proj, up_proj or down_proj for the experts' stacks; such a layer is
    named by its parameter, which peft adapts alike but for dropout, and the file is the same.
    """
    taken = ("gate_proj", "up_proj", "down_proj") if isinstance(model, Afmoe) else ()
    named = [name for name in targets if name.endswith(taken)] if taken else []
    return [name for name in targets if name not in named], [f"{name}.weight" for name in named]


def _fill(name: str, tensor: Tensor, seed: int) -> None:
    if name.endswith("lora_B.weight") or tensor.is_meta:
        tensor.zero_()
        return
    bound = 1 / math.sqrt(tensor.shape[1])
    tensor.uniform_(-bound, bound, generator=keyed_generator(f"{seed}/lora/{name}"))


def seed_dropout(seed: int, step: int) -> None:
    """Make the draws of optimizer step `step` its own, so that a resumed run drops the same."""
    torch.manual_seed(keyed_generator(f"{seed}/dropout/{step}").initial_seed())
