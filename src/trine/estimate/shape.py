"""A model without weights: its layers by kind, and the same model with fewer of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from trine.errors import BadInput
from trine.model.afmoe import Afmoe
from trine.model.causal import CausalModel
from trine.model.config import ModelConfig
from trine.model.hf import LanguageModel
from trine.model.hf_config import ABLATED, AFMOE, architecture, read_config

Shape = Any
"""A ModelConfig, or the config of a model of transformers."""


def read_shape(folder: Path) -> Shape:
    """The shape of the model in a Hugging Face folder; its weights are not read. Raises BadInput."""
    if architecture(folder) in (AFMOE, ABLATED):
        return read_config(folder)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parts raise
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{folder}: transformers cannot read its config ({reason})") from None


def layer_kinds(shape: Shape) -> list[str]:
    """What each layer is made of; layers of one kind cost the same."""
    if isinstance(shape, ModelConfig):
        dense = shape.num_dense_layers
        return [f"{kind} {'dense' if i < dense else 'sparse'}" for i, kind in enumerate(shape.layers())]
    kinds = getattr(shape, "layer_types", None)
    return list(kinds) if kinds else ["layer"] * shape.num_hidden_layers


def with_layers(shape: Shape, kept: Sequence[int]) -> Shape:
    """The same shape with only the layers `kept`, in order."""
    if isinstance(shape, ModelConfig):
        kinds = shape.layers()
        dense = sum(i < shape.num_dense_layers for i in kept)
        changes = {"num_hidden_layers": len(kept), "num_dense_layers": dense, "preset": None}
        return shape.model_copy(update=changes | {"layer_types": tuple(kinds[i] for i in kept)})
    cut, layers = copy.deepcopy(shape), shape.num_hidden_layers
    for name, value in vars(shape).items():
        if isinstance(value, list | tuple) and len(value) == layers:
            setattr(cut, name, [value[i] for i in kept])
    cut.num_hidden_layers = len(kept)
    return cut


def build(shape: Shape, device: str = "cpu") -> LanguageModel:
    """A model of `shape` in fp32; on `meta` it takes no memory, elsewhere its weights are noise."""
    if isinstance(shape, ModelConfig):
        with torch.device(device):
            return Afmoe(shape)
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        peer: Any = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, attn_implementation="sdpa")
    return CausalModel(peer)


def dump_shape(shape: Shape) -> dict[str, Any]:
    """`shape` as JSON values, for another process."""
    if isinstance(shape, BaseModel):
        return {"afmoe": shape.model_dump(mode="json")}
    return {"transformers": json.loads(shape.to_json_string(use_diff=False))}


def parse_shape(values: dict[str, Any]) -> Shape:
    """What `dump_shape` gave."""
    if "afmoe" in values:
        return ModelConfig.model_validate(values["afmoe"], strict=False)
    from transformers import AutoConfig

    given = dict(values["transformers"])
    return AutoConfig.for_model(given.pop("model_type"), **given)
