"""Hugging Face folders: both layouts, bit-equal round trips, refusals that name what is wrong."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import trine
from tests.model.shapes import random_tokens, small_config, small_model
from trine.errors import BadInput, CheckFailed
from trine.model.hf import check_parity, export_folder, init_folder, load_model, require_parity, save_model
from trine.model.init import init_model
from trine.weights.index import read_index


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(small_model(bias=0.2), tmp_path / "model")
    return tmp_path / "model"


def hub_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("original", [True, False], ids=["per-expert", "stacked"])
def test_transformers_to_trine_to_transformers_is_bit_equal(tmp_path: Path, dtype: str, original: bool) -> None:
    from transformers import AfmoeConfig, AfmoeForCausalLM

    torch.manual_seed(0)
    config = AfmoeConfig(
        vocab_size=80,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=5,
        num_dense_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=6,
        num_experts_per_tok=2,
        num_shared_experts=2,
        sliding_window=8,
    )
    peer = AfmoeForCausalLM(config)
    for name, parameter in peer.named_parameters():
        if name.endswith("expert_bias"):
            parameter.data.normal_()
    peer = peer.to(getattr(torch, dtype))
    peer.save_pretrained(tmp_path / "theirs", save_original_format=original)
    stacked = any("gate_up_proj" in name for name in read_index(tmp_path / "theirs"))
    assert stacked is not original
    save_model(load_model(tmp_path / "theirs", dtype="auto"), tmp_path / "ours")
    back = AfmoeForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto", local_files_only=True)
    assert_bit_equal(dict(back.state_dict()), peer.state_dict() | _fp32_biases(peer))


def _fp32_biases(peer: Any) -> dict[str, torch.Tensor]:
    return {name: t.float() for name, t in peer.state_dict().items() if name.endswith("expert_bias")}


def test_trine_to_trine_is_bit_equal_in_one_or_many_shards(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    save_model(load_model(folder), tmp_path / "again")
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()
    monkeypatch.setattr("trine.weights.writer.TensorWriter.__init__.__defaults__", (20_000,))
    save_model(load_model(folder), tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("model-*-of-*.safetensors"))) > 3
    assert_bit_equal(hub_tensors(folder), hub_tensors(tmp_path / "shards"))
    tokens = random_tokens(1, 12)
    assert torch.equal(load_model(folder)(tokens), trine.load_model(tmp_path / "shards")(tokens))


def test_streamed_init_equals_init_in_memory(tmp_path: Path) -> None:
    config = small_config()
    model = small_model(config)
    init_model(model, 5)
    save_model(model, tmp_path / "memory")
    init_folder(config, tmp_path / "streamed", seed=5)
    assert_bit_equal(hub_tensors(tmp_path / "memory"), hub_tensors(tmp_path / "streamed"))


def test_export_casts_weights_and_keeps_biases_fp32(folder: Path, tmp_path: Path) -> None:
    export_folder(folder, tmp_path / "out", dtype="bfloat16")
    exported, source = hub_tensors(tmp_path / "out"), hub_tensors(folder)
    for name, tensor in exported.items():
        expected = torch.float32 if name.endswith("expert_bias") else torch.bfloat16
        assert tensor.dtype == expected, name
        assert torch.equal(tensor, source[name].to(expected)), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert check_parity(tmp_path / "out")["passed"]


def test_export_of_a_folder_that_lacks_or_adds_a_tensor_is_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"model.layers.9.strange": torch.zeros(1)}, file)
    with pytest.raises(BadInput, match=r"no place for, first 'model\.layers\.9\.strange'"):
        export_folder(folder, tmp_path / "out")
    save_file({name: tensor for name, tensor in tensors.items() if "experts.3.up" not in name}, file)
    with pytest.raises(BadInput, match=r"experts\.3\.up_proj\.weight' is missing"):
        export_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_special_token_ids_are_found_in_either_spelling(folder: Path, tmp_path: Path) -> None:
    added = [{"content": "<s>", "id": 5}, {"content": "</s>", "id": 7}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    named = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    export_folder(folder, tmp_path / "out")
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (values["bos_token_id"], values["eos_token_id"]) == (5, 7)


def test_parity_says_no_for_a_model_that_differs(folder: Path, monkeypatch: Any) -> None:
    real = load_model

    def damaged(path: Path) -> Any:
        model = real(path)
        with torch.no_grad():
            model.get_parameter("model.layers.3.mlp.experts.down_proj")[:, 0] *= 1.01
        return model

    monkeypatch.setattr("trine.model.hf.load_model", damaged)
    record = check_parity(folder)
    assert not record["passed"]
    with pytest.raises(CheckFailed, match="differ from transformers"):
        require_parity(record, folder)


def test_config_json_has_what_the_hub_expects(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    for key in ("architectures", "model_type", "layer_types", "route_scale", "score_func", "mup_enabled", "head_dim"):
        assert key in values
    assert values["architectures"] == ["AfmoeForCausalLM"]
    assert values["layer_types"] == ["sliding_attention"] * 3 + ["full_attention"]


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "of models with experts only AFMoE"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"score_func": "softmax"}, "score_func"),
        ({"route_norm": False}, "route_norm"),
        ({"n_group": 4}, "n_group is 4"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_experts": "many"}, "num_experts"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple"),
        ({"hidden_size": 64}, "config.json says"),
        ({"num_hidden_layers": 5, "layer_types": None}, "is missing"),
        ({"num_hidden_layers": 3, "layer_types": None}, "no place for"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_folders_that_do_not_fit_are_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(BadInput, match=said):
        load_model(folder)


def test_older_keys_and_absent_ones_are_understood(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    theta = values.pop("rope_theta")
    del values["layer_types"], values["rms_norm_eps"]
    values["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}
    tokens = random_tokens(1, 20)
    before = load_model(folder)(tokens)
    (folder / "config.json").write_text(json.dumps(values))
    assert torch.equal(before, load_model(folder)(tokens))


def test_tied_head_that_differs_from_the_embedding_is_refused(tmp_path: Path) -> None:
    save_model(small_model(small_config(tie_word_embeddings=True)), tmp_path / "tied")
    file = tmp_path / "tied" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, file)
    load_model(tmp_path / "tied")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(BadInput, match="lm_head differs"):
        load_model(tmp_path / "tied")


def with_index(folder: Path, name: str) -> None:
    names = list(read_index(folder))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, name)}))


def test_an_index_that_leads_elsewhere_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    for name, said in (
        ("../outside.safetensors", "plain name"),
        (str(tmp_path / "outside.safetensors"), "plain name"),
        ("link.safetensors", "outside its folder"),
        ("absent.safetensors", "missing"),
        ("model.bin", "plain name"),
    ):
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        with_index(folder, name)
        with pytest.raises(BadInput, match=said):
            load_model(folder)


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BOMBS = {
    "empty": b"",
    "short": b"\x10\0\0",
    "huge-length": struct.pack("<Q", 1 << 62) + b"{}",
    "claims-200-MB": struct.pack("<Q", 200 << 20) + b"{}",
    "nested": struct.pack("<Q", 200_000) + b"[" * 200_000,
    "not-json": struct.pack("<Q", 4) + b"{nop",
    "overlap": header({"a": F32, "b": F32}, b"\0" * 8),
    "gap": header({"a": F32 | {"data_offsets": [8, 16]}}, b"\0" * 16),
    "beyond-the-end": header({"a": F32}, b"\0" * 4),
    "trailing": header({"a": F32}, b"\0" * 12),
    "wrong-size": header({"a": F32 | {"shape": [3]}}, b"\0" * 8),
    "negative": header({"a": F32 | {"shape": [-2]}}, b"\0" * 8),
    "unknown-type": header({"a": F32 | {"dtype": "F31"}}, b"\0" * 8),
    "no-offsets": header({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_damaged_and_hostile_headers_are_refused_by_name(folder: Path, bomb: bytes) -> None:
    (folder / "model.safetensors").write_bytes(bomb)
    with pytest.raises(BadInput, match=r"model\.safetensors"):
        load_model(folder)


def test_pickles_and_empty_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="pickled weights can run code"):
        load_model(folder)
    with pytest.raises(BadInput, match=r"config\.json"):
        load_model(tmp_path / "nowhere")


def test_saving_over_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match="already exists"):
        save_model(small_model(), folder)


def test_unknown_dtype_names_the_nearest(folder: Path) -> None:
    with pytest.raises(BadInput, match="did you mean 'bfloat16'"):
        load_model(folder, dtype="bflota16")
