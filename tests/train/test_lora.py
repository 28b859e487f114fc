"""Adapters: equal to a plain loop with peft, alone in gradients and state, resumed bit for bit, exported and merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.model.shapes import random_tokens
from tests.tokens import write_tokens
from tests.train.test_freeze import write_model
from tests.train.test_loop import Stop, config, trace
from trine import load_model
from trine.data.loader import Batch
from trine.errors import BadInput
from trine.model.blocks import frozen_blocks
from trine.model.config import ModelConfig
from trine.model.hf import check_parity, export_folder
from trine.optim.config import AdamWConfig, OptimConfig
from trine.optim.groups import build_optimizers
from trine.train.checkpoint import list_checkpoints
from trine.train.config import LoraConfig, TrainConfig
from trine.train.freeze import held_dtype
from trine.train.loop import fit
from trine.train.lora import LoraFactors, resolve_targets
from trine.train.step import train_step

OPTIM = OptimConfig(adamw=AdamWConfig(lr=0.01, weight_decay=0.1, eps=1e-4))
LORA = LoraConfig(rank=4, alpha=6.0)
KINDS = ["llama", "qwen3", "afmoe"]


def adapted(folder: Path, lora: LoraConfig = LORA, dtype: str = "float32") -> tuple[Any, LoraFactors]:
    model = load_model(folder, held_dtype(folder, dtype))
    model.compute_dtype = getattr(torch, dtype)
    return model.train(), LoraFactors(model, lora, resolve_targets(lora, model), folder, 0)


def our_steps(model: Any, tokens: Tensor, steps: int) -> list[float]:
    settings = TrainConfig.model_validate(
        {"batch_sequences": 4, "micro_batch_sequences": 4, "balance": {"update": "none", "sequence_loss": 0.0}}
    )
    optimizers = build_optimizers(model, OPTIM)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.zeros(4, tokens.shape[1] - 1, dtype=torch.int32))
    return [train_step(model, optimizers, [batch], settings, 1.0, 1.0).loss for _ in range(steps)]


def peer_steps(folder: Path, adapter: Path, tokens: Tensor, steps: int) -> tuple[Any, list[float]]:
    """A plain loop: transformers' model, the adapter as peft opens it, torch's AdamW."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model: Any = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    adamw = OPTIM.adamw
    optimizer = torch.optim.AdamW(
        parameters, lr=adamw.lr, betas=adamw.betas, eps=adamw.eps, weight_decay=adamw.weight_decay
    )
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, losses


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_a_plain_loop_with_peft(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", kind, "float32")
    model, factors = adapted(folder)
    assert all(bool(one.any()) is name.endswith("lora_A.weight") for name, one in factors.tensors().items())
    for one in factors.tensors().values():
        one.add_(0.1 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1)))
    before = {name: one.clone() for name, one in factors.tensors().items()}
    (tmp_path / "adapter").mkdir()
    factors.write(tmp_path / "adapter")
    tokens = random_tokens(4, 13, 97)
    ours = our_steps(model, tokens, 4)
    peer, theirs = peer_steps(folder, tmp_path / "adapter", tokens, 4)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours[-1] < ours[0] - 0.05
    expected = peft.get_peft_model_state_dict(peer)
    assert set(expected) == set(before)
    for name, one in factors.tensors().items():
        assert (one - expected[name]).norm() <= 1e-5 * expected[name].norm(), name
        assert not torch.equal(one, before[name]), name


@pytest.mark.parametrize("kind", ["llama", "afmoe"])
def test_only_factors_hold_gradients_and_state_and_the_rest_stays_as_stored(kind: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", kind, "bfloat16")
    model, factors = adapted(folder, dtype="bfloat16")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert OPTIM.matrices == "muon"
    optimizers = build_optimizers(model, OPTIM)
    loss = our_steps(model, random_tokens(4, 13, 97), 1)
    held = {name for name, p in model.named_parameters() if p.grad is not None}
    assert held == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(held) == len(factors.tensors()) == 2 * len(resolve_targets(LORA, load_model(folder)))
    assert optimizers.state_tensors() == {}
    for name, p in model.named_parameters():
        matrix = p.dim() > 1 and name not in held and not name.endswith("router.gate.weight")
        assert p.dtype == (torch.bfloat16 if matrix else torch.float32), name
        assert torch.equal(p, before[name]) is (name not in held), name
    assert loss[0] > 0
    assert ("router" in str(held), "mlp.experts" in str(held), frozen_blocks(model)) == (False, False, 0)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.mark.parametrize("kind", ["llama", "afmoe"])
def test_a_resumed_run_has_the_same_bits_and_its_adapter_opens_in_peft(kind: str, tokens: Path, tmp_path: Path) -> None:
    start = write_model(tmp_path / "start", kind, "bfloat16")
    lora = {"rank": 4, "dropout": 0.3, "targets": ("q_proj", "mlp.down_proj")}
    train = config(init_from=str(start), lora=lora, recompute=True)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(ModelConfig(), OPTIM, train, tokens, whole)
    with pytest.raises(KeyboardInterrupt):
        fit(ModelConfig(), OPTIM, train, tokens, stopped, Stop(8))
    fit(ModelConfig(), OPTIM, train, tokens, stopped)
    assert trace(stopped) == trace(whole)
    last = list_checkpoints(whole)[0]
    kept = (last / "adapter_model.safetensors").read_bytes()
    assert kept == (list_checkpoints(stopped)[0] / "adapter_model.safetensors").read_bytes()
    assert not (last / "model.safetensors").exists()
    assert {name.rpartition(".")[2] for name in load_file(last / "optimizer.safetensors")} == {
        "exp_avg",
        "exp_avg_sq",
        "step",
    }

    export_folder(last, tmp_path / "merged")
    assert check_parity(tmp_path / "merged")["passed"]
    base = transformers.AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    peer = peft.PeftModel.from_pretrained(base, last).eval()
    inputs = random_tokens(2, 12, 97)
    theirs = peer(input_ids=inputs, use_cache=False).logits
    for folder in (last, tmp_path / "merged"):
        assert torch.allclose(load_model(folder)(inputs), theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(load_model(start)(inputs), theirs, rtol=1e-2, atol=1e-2)
    other = config(init_from=str(start), lora=lora | {"rank": 2}, recompute=True)
    with pytest.raises(BadInput, match="another config"):
        fit(ModelConfig(), OPTIM, other, tokens, whole)


def test_recomputed_blocks_drop_the_same_inputs(tmp_path: Path) -> None:
    folder, tokens = write_model(tmp_path / "model", "afmoe", "float32"), random_tokens(4, 13, 97)
    found = []
    for recompute in (False, True):
        model, factors = adapted(folder, LoraConfig(rank=4, dropout=0.5))
        for name, one in factors.tensors().items():
            if name.endswith("lora_B.weight"):
                one.fill_(0.1)
        model.recompute = recompute
        torch.manual_seed(0)
        our_steps(model, tokens, 1)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        ("afmoe", ["experts.down_proj"], "are experts, held as stacked matrices"),
        ("afmoe", ["router"], "decides where tokens go"),
        ("afmoe", ["q_proj", "kproj"], "'kproj' is the end of no linear layer's name in the blocks; did you mean 'k_"),
        ("llama", ["lm_head"], "'lm_head' is the end of no linear layer's name in the blocks"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_refused(
    kind: str, targets: list[str], message: str, tmp_path: Path
) -> None:
    model = load_model(write_model(tmp_path / "model", kind, "float32"))
    with pytest.raises(BadInput, match=message):
        resolve_targets(LoraConfig(targets=tuple(targets)), model)


def test_an_adapter_needs_a_model_to_adapt() -> None:
    for given in ({"lora": {}}, {"lora": {}, "init_from": "m", "only": "s"}):
        with pytest.raises(ValueError, match="lora needs init_from"):
            TrainConfig.model_validate(given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha_pattern": {"q_proj": 64}}, "has alpha_pattern, which is more than plain LoRA"),
        ({"bias": "all"}, "has bias, which is more"),
        ({"r": None}, "r is None, expected a number above 0"),
        ({"r": 3}, "do not fit"),
    ],
)
def test_an_adapter_that_is_more_than_plain_or_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = write_adapter(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(BadInput, match=said):
        load_model(folder)


def test_a_factor_of_no_weight_and_a_cut_file_are_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    weights = folder / "adapter_model.safetensors"
    save_file({name.replace("q_proj", "q_projx"): one for name, one in load_file(weights).items()}, weights)
    with pytest.raises(BadInput, match=r"adapts '.*q_projx.weight', which .* does not have; did you mean"):
        load_model(folder)
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(BadInput, match=r"adapter_model.safetensors: cannot be read"):
        load_model(folder)


def write_adapter(folder: Path) -> Path:
    """An adapter that peft writes for a tiny Llama."""
    base = transformers.AutoModelForCausalLM.from_pretrained(write_model(folder / "base", "llama", "float32"))
    peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(str(folder / "adapter"))
    return folder / "adapter"
