"""Runs that start from a Hugging Face folder: the plain loop's losses, the same bits after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.model.shapes import small_model
from tests.model.test_causal import write_peer
from tests.tokens import write_tokens
from tests.train.test_loop import Stop, config, trace, weights
from trine import load_model, save_model
from trine.data.loader import TokenStream, batches
from trine.data.shards import TokenShards
from trine.errors import BadInput
from trine.model.config import ModelConfig
from trine.model.hf import check_parity, export_folder
from trine.optim.config import AdamWConfig, MuonConfig, OptimConfig
from trine.optim.groups import build_optimizers, optimizer_of, outer_names
from trine.optim.schedule import lr_factor
from trine.recipe import Config
from trine.train.checkpoint import list_checkpoints
from trine.train.loop import fit
from trine.train.metrics import read_metrics

OPTIM = OptimConfig(muon=MuonConfig(lr=0.01), adamw=AdamWConfig(lr=0.003))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


def run(start: Path, tokens: Path, out: Path, optim: OptimConfig = OPTIM, **given: Any) -> None:
    observer = given.pop("observer", None)
    fit(ModelConfig(), optim, config(init_from=str(start), **given), tokens, out, observer)


def plain_losses(start: Path, tokens: Path, optim: OptimConfig, steps: int) -> list[float]:
    """transformers and torch alone, fp32: every document its own forward pass, mean over the batch's targets."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).train()
    vectors = [p for p in model.parameters() if p.dim() < 2]
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    settings = optim.adamw
    adamw = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
    )
    train = config()
    stream = TokenStream(TokenShards(tokens).sets["train"], train.sequence_length, train.seed, masked=True)
    rows, losses = batches(stream, 0, train.batch_sequences, 0), []
    for step in range(1, steps + 1):
        batch, total, count = next(rows), torch.zeros(()), 0
        assert batch.document_ids is not None
        for row, targets, ids in zip(batch.tokens, batch.targets, batch.document_ids, strict=True):
            _, lengths = ids.unique_consecutive(return_counts=True)
            for one, wanted in zip(row.split(lengths.tolist()), targets.split(lengths.tolist()), strict=True):
                logits = model(input_ids=one.unsqueeze(0), use_cache=False).logits[0]
                total = total + F.cross_entropy(logits, wanted, ignore_index=-1, reduction="sum")
                count += int((wanted >= 0).sum())
        adamw.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm or float("inf"))
        for group in adamw.param_groups:
            group["lr"] = settings.lr * lr_factor(step, train.steps, optim.schedule)
        adamw.step()
        losses.append(float(total.detach()) / count)
    return losses


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_losses_are_those_of_a_plain_loop(kind: str, tokens: Path, tmp_path: Path) -> None:
    start = write_peer(tmp_path / "start", kind)
    optim = OPTIM.model_copy(update={"matrices": "adamw"})
    run(start, tokens, tmp_path / "run", optim, dtype="float32")
    ours = [one["loss"] for one in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert ours == pytest.approx(plain_losses(start, tokens, optim, len(ours)), rel=1e-5)
    assert ours[-1] < ours[0] - 0.05


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_a_resumed_run_has_the_same_bits_and_exports(kind: str, tokens: Path, tmp_path: Path) -> None:
    start = write_peer(tmp_path / "start", kind)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(start, tokens, whole, recompute=True)
    with pytest.raises(KeyboardInterrupt):
        run(start, tokens, stopped, recompute=True, observer=Stop(8))
    run(start, tokens, stopped, recompute=True)
    assert trace(stopped) == trace(whole)
    assert weights(stopped) == weights(whole)
    assert read_metrics(whole / "metrics.jsonl")[-1]["bits_per_byte"]["heldout"] > 0
    export_folder(list_checkpoints(whole)[0], tmp_path / "model")
    assert check_parity(tmp_path / "model")["passed"]
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == kind
    start_weights, trained = load_model(start).state_dict(), load_model(tmp_path / "model").state_dict()
    assert all(not torch.equal(trained[name], tensor) for name, tensor in start_weights.items())


def test_an_afmoe_folder_is_a_starting_point(tokens: Path, tmp_path: Path) -> None:
    save_model(small_model(bias=0.1), tmp_path / "start")
    run(tmp_path / "start", tokens, tmp_path / "run", steps=3, dtype="float32")
    fresh = tmp_path / "fresh"
    run(tmp_path / "start", tokens, fresh, steps=3, dtype="float32")
    assert trace(tmp_path / "run") == trace(fresh)
    stream = TokenStream(TokenShards(tokens).sets["train"], 24, 0, masked=True)
    batch = next(batches(stream, 0, 4, 0))
    logits = load_model(tmp_path / "start")(batch.tokens, batch.document_ids)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1)
    assert read_metrics(fresh / "metrics.jsonl")[0]["loss"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_matrices_go_to_muon_embeddings_and_vectors_to_adamw(tmp_path: Path) -> None:
    model = load_model(write_peer(tmp_path / "start", "gpt2"))
    kinds = {n: optimizer_of(n, p, OptimConfig(), outer_names(model)) for n, p in model.named_parameters()}
    assert {n for n, kind in kinds.items() if kind == "muon"} == {
        f"transformer.h.{i}.{part}.weight"
        for i in range(2)
        for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    build_optimizers(model, OptimConfig())


def test_another_start_or_too_small_a_vocabulary_is_refused(tokens: Path, tmp_path: Path) -> None:
    start = write_peer(tmp_path / "start", "llama", vocab_size=64)
    with pytest.raises(BadInput, match="64 embeddings"):
        run(start, tokens, tmp_path / "run")
    one, other = write_peer(tmp_path / "one", "llama"), write_peer(tmp_path / "other", "mistral")
    run(one, tokens, tmp_path / "two", steps=1)
    with pytest.raises(BadInput, match="another config"):
        run(other, tokens, tmp_path / "two", steps=1)
    with pytest.raises(BadInput, match=r"config.json: missing"):
        run(tmp_path / "nowhere", tokens, tmp_path / "three")


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    start, tokens = write_peer(tmp_path / "start", "llama"), write_tokens(tmp_path / "tokens")
    (tokens / "tokenizer").mkdir()
    for folder, word in ((start, "a"), (tokens / "tokenizer", "b")):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {word: 0}}, "added_tokens": []}))
    with pytest.raises(BadInput, match="another tokenizer"):
        run(start, tokens, tmp_path / "run")


def test_a_config_with_two_models_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.init_from brings its own model"):
        Config.model_validate({"model": {}, "train": {"init_from": "folder"}})
