"""Gradient norms equal those of transformers' models on the same tokens, experts one by one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import transformers

from tests.conftest import Command
from tests.tokens import write_tokens
from tests.train.test_freeze import write_model
from tests.train.test_loop import config
from trine.data.loader import batches
from trine.data.pack import TokenStream
from trine.data.shards import TokenShards
from trine.errors import BadInput
from trine.optim.config import OptimConfig
from trine.train.gradients import measure_gradients


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "tokens")


@pytest.mark.parametrize("kind", ["llama", "afmoe"])
def test_norms_are_those_of_transformers(kind: str, tokens: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", kind, "float32")
    train = config(init_from=str(folder), dtype="float32", document_mask=False)
    record = measure_gradients(OptimConfig(), train, tokens, 3)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    stream = TokenStream(TokenShards(tokens).sets["train"], train.sequence_length, train.seed, masked=False)
    expected = {name: 0.0 for name, p in peer.named_parameters() if p.dim() > 1}
    squares: dict[str, torch.Tensor] = {}
    for batch in batches(stream, 0, iter([2, 2, 2]), 0):
        peer.zero_grad()
        logits = peer(input_ids=batch.tokens, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-1).backward()
        for name, p in ((name, p) for name, p in peer.named_parameters() if p.dim() > 1):
            assert p.grad is not None
            squares[name] = squares.get(name, torch.zeros(p.shape)) + p.grad.double() ** 2
    for name in expected:
        whole = squares[name]
        stack = re.match(r"(.*experts)\.(gate_up_proj|down_proj)$", name)
        named = {name: whole}
        if stack:
            halves = {"gate_proj": whole.chunk(2, 1)[0], "up_proj": whole.chunk(2, 1)[1]}
            kinds = halves if stack[2] == "gate_up_proj" else {"down_proj": whole}
            named = {f"{stack[1]}.{e}.{k}.weight": part[e] for k, part in kinds.items() for e in range(len(whole))}
        for hub, part in named.items():
            measured = record["modules"].pop(hub)
            assert measured["norm"] == pytest.approx(float((part.sum() / 3).sqrt()), rel=2e-4), hub
            assert measured["shape"] == list(part.shape)
    assert record["modules"] == {}
    assert (record["meta"]["batches"], record["meta"]["targets"]) == (3, 3 * 2 * 24)


def test_a_selection_by_gradients_through_the_command(trine: Command, tokens: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "model", "llama", "float32")
    (tmp_path / "c.yaml").write_text(
        json.dumps({"train": {"init_from": "model/float32", "tokens": str(tokens), "sequence_length": 16}})
    )
    for command in (
        ["spectrum", "scan", "model/float32", "--out", "scan.json"],
        ["spectrum", "select", "scan.json", "--top", "50", "--ties", "order", "--out", "best.yaml"],
        ["spectrum", "gradients", "c.yaml", "--batches", "2", "--out", "g.json"],
    ):
        done = trine(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    chosen = trine(
        *["spectrum", "select", "scan.json", "--rule", "gradient-norm", "--gradients", "g.json"],
        *["--like", "best.yaml", "--out", "control.yaml", "--json"],
        cwd=tmp_path,
    )
    assert chosen.returncode == 0, chosen.stderr
    record = json.loads(chosen.stdout)
    assert record["parameters"] == record["like"]["parameters"]
    assert 'rule: "gradient-norm"' in (tmp_path / "control.yaml").read_text()
    refused = trine("spectrum", "select", "scan.json", "--rule", "gradient-norm", "--out", "x.yaml", cwd=tmp_path)
    assert (refused.returncode, "goes with --gradients FILE" in refused.stderr) == (2, True)


def test_a_run_without_a_model_has_nothing_to_measure(tokens: Path) -> None:
    with pytest.raises(BadInput, match=r"train.init_from: missing"):
        measure_gradients(OptimConfig(), config(), tokens, 1)
