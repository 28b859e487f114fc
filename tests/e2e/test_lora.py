"""`trine lora extract`, and `train.lora` with its exports, through the installed command."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.conftest import Command
from tests.e2e.cards import made_again
from tests.model.test_causal import write_peer
from tests.surgery.test_lora import tuned
from tests.tokens import write_tokens
from trine.manifest import verify


def test_an_adapter_is_extracted(trine: Command, tmp_path: Path) -> None:
    tuned(tmp_path, 2)
    done = trine("lora", "extract", "tuned", "base", "adapter", "--rank", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "21 modules at rank 2" in done.stdout
    verify(tmp_path / "adapter", "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 2, "base")
    made_again(tmp_path / "adapter", tmp_path)
    page = trine("report", "adapter", cwd=tmp_path)
    assert (page.returncode, "`trine lora extract`, of which there is no page" in page.stderr) == (2, True)
    again = trine("lora", "extract", "tuned", "base", "adapter", cwd=tmp_path)
    assert (again.returncode, "already exists" in again.stderr) == (2, True)


def test_an_adapter_is_trained_and_merged(trine: Command, tmp_path: Path) -> None:
    write_peer(tmp_path / "start", "llama")
    write_tokens(tmp_path / "tokens")
    train = {
        "tokens": "tokens",
        "init_from": "start",
        "lora": {"rank": 2, "targets": ["self_attn.v_proj", "mlp.up_proj"]},
        "steps": 3,
        "sequence_length": 16,
        "batch_sequences": 2,
        "micro_batch_sequences": 2,
    }
    (tmp_path / "c.yaml").write_text(json.dumps({"train": train, "optim": {"adamw": {"lr": 0.01}}}))
    done = trine("train", "c.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "train.lora: " in done.stderr
    verify(tmp_path / "run" / "adapter", "adapter")
    merge = {"models": [{"model": "start+run/adapter"}], "merge_method": "passthrough", "dtype": "float32"}
    (tmp_path / "m.yaml").write_text(json.dumps(merge))
    merged = trine("merge", "m.yaml", "merged", cwd=tmp_path)
    assert merged.returncode == 0, merged.stderr
    ours, theirs, start = (
        load_file(tmp_path / name / "model.safetensors") for name in ("run/model", "merged", "start")
    )
    for name, one in ours.items():
        assert torch.allclose(one, theirs[name], rtol=1e-5, atol=1e-7), name
        assert torch.equal(one, start[name]) is not name.endswith(("v_proj.weight", "up_proj.weight")), name
    refused = trine("train", "c.yaml", "--train.lora.targets", "[experts]", cwd=tmp_path)
    assert (refused.returncode, "'experts' is the end of no linear layer" in refused.stderr) == (2, True)
