"""A model without weights: its layers by kind, and the same model with fewer of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from trine.model.config import ModelConfig
from trine.model.shape import Shape


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
