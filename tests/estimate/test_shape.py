"""Shapes without weights, and with fewer layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.model.shapes import small_config, small_model
from tests.model.test_causal import write_peer
from trine.errors import BadInput
from trine.estimate.shape import dump_shape, layer_kinds, parse_shape, with_layers
from trine.model.causal import CausalModel
from trine.model.hf import save_model
from trine.model.shape import build, read_shape


def test_kinds_follow_attention_and_feed_forward() -> None:
    kinds = layer_kinds(small_config())
    assert kinds == ["sliding_attention dense", *["sliding_attention sparse"] * 2, "full_attention sparse"]


def test_a_cut_model_has_the_kept_layers_of_the_whole() -> None:
    whole = small_config(num_hidden_layers=6, num_dense_layers=2)
    cut = with_layers(whole, [0, 3, 4])
    assert layer_kinds(cut) == [layer_kinds(whole)[i] for i in (0, 3, 4)]
    size = {name: p.shape for name, p in build(whole, "meta").named_parameters()}
    for new, old in enumerate((0, 3, 4)):
        for name, parameter in build(cut, "meta").named_parameters():
            if name.startswith(f"model.layers.{new}."):
                assert size[name.replace(f"layers.{new}.", f"layers.{old}.")] == parameter.shape


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gpt2"])
def test_models_of_transformers_are_read_cut_and_passed_on(kind: str, tmp_path: Path) -> None:
    shape = read_shape(write_peer(tmp_path / "peer", kind, num_hidden_layers=4))
    cut = parse_shape(json.loads(json.dumps(dump_shape(with_layers(shape, [0, 2])))))
    assert (len(layer_kinds(shape)), len(layer_kinds(cut))) == (4, 2)
    model = build(cut)
    hidden, _ = model.hidden(torch.arange(8).unsqueeze(0))
    assert hidden.shape[:2] == (1, 8)
    assert isinstance(model, CausalModel)
    assert model.config.model_type == kind


def test_the_folder_of_an_afmoe_model_gives_its_config(tmp_path: Path) -> None:
    save_model(small_model(), tmp_path / "model")
    shape = read_shape(tmp_path / "model")
    assert shape.num_experts == small_config().num_experts
    assert parse_shape(dump_shape(shape)) == shape
    (tmp_path / "model" / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(BadInput, match="cannot read its config"):
        read_shape(tmp_path / "model")
