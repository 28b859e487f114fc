"""Plans of training in part: counted bytes against those of real models after a step, probes, refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.shapes import random_tokens
from tests.train.test_freeze import CASES, select, write_model
from trine import load_model
from trine.data.loader import Batch
from trine.errors import BadInput
from trine.estimate.frozen import Frozen, frozen_part
from trine.estimate.machine import Machine
from trine.estimate.plan import make_plan
from trine.estimate.point import kinds_of
from trine.estimate.probe import hold_mapped
from trine.estimate.size import measure_size
from trine.model.shape import build, read_shape
from trine.optim.config import OptimConfig
from trine.optim.groups import build_optimizers
from trine.train.config import LoraConfig, TrainConfig
from trine.train.freeze import freeze, held_dtype, resolve
from trine.train.lora import LoraFactors, resolve_targets
from trine.train.step import train_step

OPTIM = OptimConfig()
ROOMY = Machine("cpu", 1, 1 << 34, 1 << 34)
SHORT: dict[str, Any] = {"sequence_length": 16, "batch_sequences": 2, "micro_batch_sequences": 2, "threads": 1}


def training(folder: Path, case: str, tmp_path: Path) -> TrainConfig:
    part = (
        {"lora": {"rank": 4}} if case.startswith("lora") else {"only": str(select(tmp_path / "s.yaml", CASES[case][1]))}
    )
    return TrainConfig.model_validate(SHORT | {"init_from": str(folder)} | part)


def in_file(tensor: torch.Tensor, end: str = ".safetensors") -> bool:
    """Whether `tensor` lies in the pages of a file whose path has `end`."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if end in line:
            low, high = (int(one, 16) for one in line.split()[0].split("-"))
            if low <= tensor.data_ptr() < high:
                return True
    return False


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", [*CASES, "lora llama", "lora afmoe"])
def test_bytes_are_those_that_a_step_leaves(case: str, dtype: str, tmp_path: Path) -> None:
    kind = case.removeprefix("lora ") if case.startswith("lora") else CASES[case][0]
    folder = write_model(tmp_path / "model", kind, dtype)
    train, shape = training(folder, case, tmp_path), read_shape(folder)
    size = measure_size(shape, OPTIM, 16, frozen_part(shape, train))

    model = load_model(folder, held_dtype(folder, train.dtype)).train()
    if train.lora is None:
        freeze(model, resolve(tmp_path / "s.yaml", model))
    else:
        LoraFactors(model, train.lora, resolve_targets(train.lora, model), folder, 0)
    model.compute_dtype = torch.bfloat16
    optimizers = build_optimizers(model, OPTIM)
    tokens = random_tokens(2, 17, 97)
    train_step(model, optimizers, [Batch(tokens[:, :-1], tokens[:, 1:], None)], train, None, 1.0)
    real = {id(one): one for one in (*model.parameters(), *model.buffers())}.values()
    beside = sum(one.numel() * one.element_size() for one in real)
    assert size.weights == beside
    assert size.mapped == sum(
        p.nbytes for p in model.parameters() if p.dim() > 1 and not p.requires_grad and in_file(p)
    )
    assert bool(size.mapped) == (kind != "afmoe")
    assert size.gradients == sum(
        p.grad.numel() * p.grad.element_size() for p in model.parameters() if p.grad is not None
    )
    assert size.optimizer == sum(t.numel() * t.element_size() for t in optimizers.state_tensors().values())
    full = measure_size(shape, OPTIM, 16)
    assert size.flops_per_token < full.flops_per_token
    assert size.static < full.static


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_probe_holds_weights_in_pages_of_files_as_a_run_does(kind: str, tmp_path: Path) -> None:
    shape = read_shape(write_model(tmp_path / "model", kind, "float32"))
    model = hold_mapped(build(shape, "meta", "bfloat16"), tmp_path / "pages")
    assert all(in_file(one, f"{tmp_path}/pages/") and one.dtype == torch.bfloat16 for one in model.parameters())
    assert sum(path.stat().st_blocks for path in (tmp_path / "pages").iterdir()) == 0
    assert model(random_tokens(2, 16, 97)).shape == (2, 16, model.output_weight.shape[0])
    trained = next(iter(model.parameters()))
    trained.data = trained.data.float()
    assert not in_file(trained, f"{tmp_path}/pages/")


def test_layers_of_a_part_are_renumbered_and_told_apart(tmp_path: Path) -> None:
    names = ("model.layers.2.mlp.up_proj.weight", "model.layers.10.mlp.up_proj.weight", "lm_head.weight")
    frozen = Frozen(held="bfloat16", names=names)
    assert frozen.layers() == {2, 10}
    assert frozen.within([1, 2]).names == ("model.layers.1.mlp.up_proj.weight", "lm_head.weight")
    assert frozen.within([0, 2, 10]).names == (
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.2.mlp.up_proj.weight",
        "lm_head.weight",
    )
    folder = write_model(tmp_path / "model", "afmoe", "float32")
    shape = read_shape(folder)
    part = frozen_part(shape, training(folder, "together", tmp_path))
    assert [kind.endswith(" below") for kind in kinds_of(shape, part)] == [True, True, False, False]
    lora = Frozen(held="float32", lora=LoraConfig(targets=("model.layers.0.self_attn.q_proj",))).within([0])
    assert lora.lora is not None
    assert lora.lora.targets == ("model.layers.0.self_attn.q_proj",)


@pytest.mark.parametrize("case", ["separate", "lora llama"])
def test_a_part_is_probed_as_it_is_trained(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trine.estimate.trial.BUDGET_SECONDS", 200.0)
    folder = write_model(tmp_path / "model", "llama" if "llama" in case else "afmoe", "bfloat16")
    train, shape = training(folder, case, tmp_path), read_shape(folder)
    plan = make_plan(shape, OPTIM, train, ROOMY)
    whole = make_plan(shape, OPTIM, train.model_copy(update={"only": None, "lora": None}), ROOMY, probe=False)
    assert plan["time"] is not None
    assert plan["fits"]["memory"]
    assert plan["memory"]["activations"] > 0
    assert plan["model"]["trained"] < whole["model"]["trained"] == whole["model"]["parameters"]
    for kind in ("gradients", "optimizer", "weights"):
        assert plan["memory"][kind] < whole["memory"][kind], kind
    assert plan["disk"]["checkpoint"] < whole["disk"]["checkpoint"]


def test_what_cannot_fit_and_what_is_wrong_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "afmoe", "bfloat16")
    train, shape = training(folder, "together", tmp_path), read_shape(folder)
    plan = make_plan(shape, OPTIM, train, Machine("cpu", 1, 1 << 18, 1 << 34), probe=False)
    assert not plan["fits"]["memory"]
    assert plan["advice"] == []
    (tmp_path / "s.yaml").write_text("model.layers.9.mlp.up_proj.weight\n")
    with pytest.raises(BadInput, match=re.escape("s.yaml:1: the model has no parameter")):
        make_plan(shape, OPTIM, train, ROOMY, probe=False)
