"""`trine spectrum` through the installed command on tiny checkpoints of five layouts."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3MoeConfig

from tests.conftest import Command, read_json
from tests.tokens import write_tokens
from trine.model.config import ModelConfig
from trine.model.hf import init_folder
from trine.spectrum.measure import measure_matrix
from trine.spectrum.scan import journal_of, scan

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
MOE = SHAPE | {"moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}
CONFIGS: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen3_moe": Qwen3MoeConfig}


def checkpoint(folder: Path, kind: str) -> Path:
    """A random model whose matrices each hold a signal, so that none is tied with another."""
    if kind == "afmoe":
        init_folder(ModelConfig.model_validate(MOE), folder, 0, "float32")
    else:
        torch.manual_seed(0)
        config = CONFIGS[kind.removesuffix("_fused")].from_dict(MOE if "moe" in kind else SHAPE)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    torch.manual_seed(1)
    for tensor in tensors.values():
        if tensor.dim() == 2:
            tensor += torch.randn(len(tensor), 1) @ torch.randn(1, tensor.shape[1])
    save_file(fused(tensors) if kind.endswith("_fused") else tensors, path)
    return folder


def fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts stacked as transformers holds them in memory."""
    made = {name: one for name, one in tensors.items() if ".experts." not in name}
    for i in range(SHAPE["num_hidden_layers"]):
        stem = f"model.layers.{i}.mlp.experts"
        of = {p: [tensors[f"{stem}.{e}.{p}_proj.weight"] for e in range(8)] for p in ("gate", "up", "down")}
        made[f"{stem}.gate_up_proj"] = torch.cat([torch.stack(of["gate"]), torch.stack(of["up"])], dim=1)
        made[f"{stem}.down_proj"] = torch.stack(of["down"])
    return made


@pytest.mark.parametrize("kind", ["afmoe", "qwen3_moe", "qwen3_moe_fused", "llama", "mistral"])
def test_every_matrix_is_seen_and_a_selection_written(kind: str, tmp_path: Path, trine: Command) -> None:
    folder = checkpoint(tmp_path / "model", kind)
    done = trine("spectrum", "scan", folder, "--out", tmp_path / "scan.json")
    assert done.returncode == 0, done.stderr
    assert "parameters in matrices (100%)" in done.stdout
    tensors = load_file(folder / "model.safetensors")
    found = json.loads((tmp_path / "scan.json").read_text(), parse_constant=pytest.fail)
    seen = sum(rows * columns for rows, columns in (one["shape"] for one in found["modules"].values()))
    assert seen == sum(one.numel() for one in tensors.values() if one.dim() > 1)
    if kind == "qwen3_moe_fused":
        up = found["modules"]["model.layers.1.mlp.experts.7.up_proj.weight"]
        assert up["stored_as"] == ["model.layers.1.mlp.experts.gate_up_proj", 7, [24, 48]]
        alone = measure_matrix(tensors["model.layers.1.mlp.experts.gate_up_proj"][7, 24:], "calibrated")
        assert (up["snr"], up["type"]) == (alone.numbers["snr"], "mlp.experts.up_proj")
    assert all(one["rank"] >= 1 for one in found["modules"].values())
    done = trine("spectrum", "select", tmp_path / "scan.json", "--out", tmp_path / "s.txt", "--format", "plain")
    assert done.returncode == 0, done.stderr
    assert set((tmp_path / "s.txt").read_text().split()) <= set(found["modules"])


def test_both_layouts_of_experts_scan_alike(tmp_path: Path) -> None:
    scans = []
    for kind in ("qwen3_moe", "qwen3_moe_fused"):
        record = scan(str(checkpoint(tmp_path / kind, kind)), tmp_path / f"{kind}.json")
        assert record is not None
        scans.append(record["modules"])
    assert set(scans[0]) == set(scans[1])
    for name, one in scans[0].items():
        assert scans[1][name]["snr"] == pytest.approx(one["snr"], rel=1e-6)


def test_a_stopped_scan_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = checkpoint(tmp_path / "model", "llama"), tmp_path / "scan.json"
    whole = scan(str(folder), tmp_path / "whole.json")
    assert whole is not None
    calls = []

    def stopping(matrix: torch.Tensor, measure: Any, device: torch.device) -> Any:
        calls.append(matrix.shape)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return measure_matrix(matrix, measure, device)

    monkeypatch.setattr("trine.spectrum.scan.measure_matrix", stopping)
    with pytest.raises(KeyboardInterrupt):
        scan(str(folder), out)
    with journal_of(out).open("ab") as file:
        file.write(b'{"name": "cut')
    assert scan(str(folder), out) == whole == read_json(out)
    assert len(calls) == 1 + len(whole["modules"])
    assert not journal_of(out).exists()
    assert scan(str(folder), out) == whole
    assert len(calls) == 1 + len(whole["modules"])


def test_bad_checkpoints_are_told(tmp_path: Path, trine: Command) -> None:
    folder = checkpoint(tmp_path / "model", "llama")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, path)
    done = trine("spectrum", "scan", folder, "--out", tmp_path / "scan.json")
    assert "unscored model.layers.0.mlp.up_proj.weight: 1 of 1,536 values are NaN" in done.stdout
    done = trine("spectrum", "select", tmp_path / "scan.json", "--out", tmp_path / "s.yaml")
    assert (done.returncode, "values are NaN" in done.stderr, (tmp_path / "s.yaml").exists()) == (2, True, False)
    os.truncate(path, path.stat().st_size - 100)
    done = trine("spectrum", "scan", folder, "--out", tmp_path / "again.json")
    assert (done.returncode, "the file is cut or padded" in done.stderr) == (2, True)
    header = json.dumps({"a.weight": {"dtype": "I8", "shape": [2, 2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    done = trine("spectrum", "scan", folder, "--out", tmp_path / "again.json")
    assert (done.returncode, "stored as I8" in done.stderr) == (2, True)


TRAIN = """\
optim: {{muon: {{lr: 0.01}}, adamw: {{lr: 0.005}}}}
train:
  init_from: {model}
  tokens: {tokens}
  only: {selection}
  steps: 6
  sequence_length: 32
  batch_sequences: 4
  micro_batch_sequences: 2
  threads: 1
"""


@pytest.mark.parametrize(("kind", "experts"), [("afmoe", "separate"), ("afmoe", "together"), ("llama", "together")])
def test_what_is_selected_is_trained_and_nothing_else(kind: str, experts: str, tmp_path: Path, trine: Command) -> None:
    folder, tokens = checkpoint(tmp_path / "model", kind), write_tokens(tmp_path / "tokens", vocabulary=64)
    scan(str(folder), tmp_path / "scan.json")
    selection, options = tmp_path / "selection.yaml", ("--top", 25, "--from-layer", 1, "--experts", experts)
    done = trine("spectrum", "select", tmp_path / "scan.json", "--out", selection, *options)
    assert done.returncode == 0, done.stderr
    config = tmp_path / "c.yaml"
    config.write_text(TRAIN.format(model=folder, tokens=tokens, selection=selection))
    done = trine("train", config, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "are trained, and the first 1 blocks keep no activations" in done.stdout + done.stderr
    chosen = {line[2:] for line in selection.read_text().splitlines() if line.startswith("- ")}
    before, after = (load_file(one / "model.safetensors") for one in (folder, tmp_path / "run" / "model"))
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert {name for name in moved if not name.endswith("expert_bias")} == chosen
    selection.write_text(selection.read_text().replace("layers.1", "layers.11"))
    done = trine("train", config, "--out", tmp_path / "other")
    assert (done.returncode, f"{selection}:" in done.stderr, "did you mean" in done.stderr) == (2, True, True)
    assert not (tmp_path / "other").exists()
