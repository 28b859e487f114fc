"""LoRA inputs against peft's merge_and_unload, tensor by tensor; golden case 30; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.merge.checkpoints import LLAMA, read_weights, transformers_model
from tests.merge.golden import Tensors, assert_close, ours, peer, planned
from trine.errors import BadInput, TrineError

peft = pytest.importorskip("peft")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": LINEAR},
    "rslora": {"target_modules": LINEAR, "use_rslora": True},
    "patterns": {
        "target_modules": LINEAR,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8},
        "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 3, "down_proj": 32},
    },
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
}


def adapter(model: Path, out: Path, **settings: Any) -> None:
    """An adapter of random numbers, and `out` + '-merged', the model with it merged by peft."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    wrapped: Any = peft.get_peft_model(loaded, peft.LoraConfig(r=4, lora_alpha=6, **settings))
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(out)
    again: Any = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    merged: Any = peft.PeftModel.from_pretrained(again, str(out)).merge_and_unload()
    merged.save_pretrained(out.with_name(f"{out.name}-merged"))


def passthrough(folder: Path, model: str) -> str:
    return f"merge_method: passthrough\nmodels: [{{model: {folder}/{model}}}]\n"


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_an_adapter_is_pefts(tmp_path: Path, kind: str, stored: str) -> None:
    transformers_model(tmp_path / "base", "llama", 0, stored)
    adapter(tmp_path / "base", tmp_path / "lora", **KINDS[kind])
    text = passthrough(tmp_path, f"base+{tmp_path}/lora")
    wanted, base = read_weights(tmp_path / "lora-merged"), read_weights(tmp_path / "base")
    found = ours(text, tmp_path / "out")
    assert set(found) == set(wanted)
    changed = [name for name in wanted if not np.array_equal(wanted[name], base[name])]
    assert len(changed) >= LLAMA["num_hidden_layers"]
    assert_close(found, wanted, "F32" if stored == "float32" else "BF16")
    for name in wanted:
        assert np.array_equal(found[name], base[name]) == (name not in changed), name


def test_weights_kept_transposed(tmp_path: Path) -> None:
    """GPT-2's Conv1D holds [in, out]: `fan_in_fan_out`."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    adapter(tmp_path / "base", tmp_path / "lora", target_modules=["c_attn"], fan_in_fan_out=True)
    names = set(read_weights(tmp_path / "base"))
    data = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert data["fan_in_fan_out"] is True
    found = ours(passthrough(tmp_path, f"base+{tmp_path}/lora"), tmp_path / "out")
    assert set(found) == names
    for name, one in read_weights(tmp_path / "lora-merged").items():
        np.testing.assert_allclose(found[name], one, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two adapters of it."""
    folder = tmp_path_factory.mktemp("lora")
    transformers_model(folder / "base", "llama", 0, "float32")
    for name in ("one", "two"):
        adapter(folder / "base", folder / name, target_modules=LINEAR if name == "one" else ["q_proj", "up_proj"])
    return folder


def test_case_30_task_arithmetic_of_adapters(two: Path, tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    text = f"merge_method: task_arithmetic\nbase_model: {two}/base\nmodels:\n" + "".join(
        f"  - {{model: {two}/base+{two}/{name}, parameters: {{weight: 0.5}}}}\n" for name in ("one", "two")
    )
    wanted = peer(text, tmp_path / "peer", lora_merge_cache=str(tmp_path / "cache"))
    for mergekit in (True, False):
        found: Tensors = ours(text, tmp_path / f"ours-{mergekit}", mergekit)
        assert set(found) == set(wanted)
        for name, one in wanted.items():
            np.testing.assert_allclose(found[name], one, atol=1e-5 * np.abs(one).max(), err_msg=name)


def test_an_adapters_files_are_hashed_and_its_numbers_looked_at(two: Path, tmp_path: Path) -> None:
    from trine.merge.engine import Options, merge

    text = passthrough(two, f"base+{two}/one")
    record = merge(planned(text, tmp_path), tmp_path / "out", Options())
    assert str(two / "one" / "adapter_model.safetensors") in record["meta"]["inputs"]
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (two / "one").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = bytearray((broken / "adapter_model.safetensors").read_bytes())
    weights[-4:] = np.float32(np.nan).tobytes()
    (broken / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(TrineError, match=r"broken/adapter_model.safetensors: '.*lora_.*' holds 1 values"):
        ours(passthrough(two, f"base+{broken}"), tmp_path / "out2")


REFUSED = {
    "dora": ({"use_dora": True}, "use_dora is not supported"),
    "biases": ({"bias": "all"}, "bias is 'all'"),
    "another kind": ({"peft_type": "IA3"}, "peft_type is IA3"),
    "rank": ({"r": 5}, "has rank 4, adapter_config.json says 5"),
    "alpha": ({"lora_alpha": "x"}, "lora_alpha is 'x', expected a number"),
    "target_parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters names stacked"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(two: Path, tmp_path: Path, case: str) -> None:
    changes, words = REFUSED[case]
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes((two / "one" / "adapter_model.safetensors").read_bytes())
    config = json.loads((two / "one" / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(BadInput, match=words):
        planned(passthrough(two, f"base+{folder}"), tmp_path)


def test_an_adapter_of_another_model(two: Path, tmp_path: Path) -> None:
    transformers_model(tmp_path / "other", "llama", 0, num_hidden_layers=2)
    with pytest.raises(BadInput, match=r"changes 'model\.layers\.2\..*', which the model does not have"):
        planned(passthrough(tmp_path, f"other+{two}/one"), tmp_path)
