"""Fine-tuning on conversations: the loss of the answers alone, the same bits after a resume, a model that can chat."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.chats import pack_chats
from tests.model.shapes import SMALL
from tests.model.test_causal import write_peer
from tests.train.test_freeze import select
from tests.train.test_loop import Stop, trace, weights
from trine.completion import TextModel
from trine.data.loader import Batch, eval_batches
from trine.data.shards import TokenShards
from trine.data.tokenizer import open_tokenizer
from trine.errors import BadInput
from trine.evaluate.bits import bits_per_byte
from trine.manifest import MANIFEST, publish
from trine.model.config import ModelConfig
from trine.model.hf import check_parity, export_folder, load_model
from trine.optim.config import AdamWConfig, MuonConfig, OptimConfig, ScheduleConfig
from trine.optim.groups import build_optimizers
from trine.optim.schedule import lr_factor
from trine.train.checkpoint import list_checkpoints
from trine.train.config import TrainConfig
from trine.train.loop import fit
from trine.train.metrics import read_metrics
from trine.train.step import train_step
from trine.train.stream import training_stream
from trine.train.timeline import Timeline

MODEL = ModelConfig.model_validate(SMALL | {"vocab_size": None})
OPTIM = OptimConfig(muon=MuonConfig(lr=0.02), adamw=AdamWConfig(lr=0.01))
ONLY = ["model.layers.1.self_attn.v_proj.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"]


def settings(**changes: Any) -> TrainConfig:
    values = {
        "steps": 6,
        "sequence_length": 48,
        "batch_sequences": 4,
        "micro_batch_sequences": 2,
        "threads": 1,
        "checkpoint_every_steps": 2,
        "eval": {"every_steps": 3},
    }
    return TrainConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_chats(tmp_path_factory.mktemp("chats"))


@pytest.fixture(scope="module")
def llama(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peer(
        tmp_path_factory.mktemp("llama") / "peer", "llama", vocab_size=TokenShards(tokens).vocab_size + 20
    )


def answers(row: list[int], tokens: Path) -> list[bool]:
    """Whether each token of a document is of an answer, read off its chatml marks."""
    tokenizer = open_tokenizer(tokens / "tokenizer").tokenizer
    start, end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    head = tokenizer.encode("assistant\n", add_special_tokens=False).ids
    inside, found = False, []
    for i, token in enumerate(row):
        inside = inside or row[i - 1 - len(head) : i] == [start, *head]
        found.append(inside)
        inside = inside and token != end
    return found


PACKINGS = {
    "carry over": {},
    "open": {"document_mask": False},
    "best fit": {"packing": "best_fit"},
    "open best fit": {"packing": "best_fit", "document_mask": False},
    "rsdb": {"packing": "rsdb", "rsdb_documents": 4},
    "mix": {"mix": ({"source": "sums", "share": 1.0},)},
}


@pytest.mark.parametrize("name", PACKINGS)
def test_every_packing_keeps_masks_with_their_tokens(tokens: Path, name: str) -> None:
    train = settings(**PACKINGS[name])
    documents = TokenShards(tokens).sets["train"]
    stream = training_stream(Timeline(train, OPTIM.schedule), documents)
    marks = [answers(documents.read(i, 0, int(n)).tolist(), tokens) for i, n in enumerate(documents.lengths)]
    counted = 0
    for index in range(40):
        row, targets, _ = stream.sequence(index)
        place, expected = 0, [-1] * len(row)
        for one in stream.segments(index):
            for i in range(one.begin, one.begin + one.take):
                if place and (i > one.begin or not train.document_mask) and marks[one.document][i]:
                    expected[place - 1] = int(row[place])
                place += 1
        assert targets[: place - 1].tolist() == expected[: place - 1]
        counted += sum(one >= 0 for one in expected)
    assert counted > 300


@pytest.mark.parametrize("packing", ["carry_over", "best_fit"])
def test_a_resumed_run_has_the_same_bits(tokens: Path, tmp_path: Path, packing: str) -> None:
    train = settings(packing=packing, rsdb_documents=4)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(MODEL, OPTIM, train, tokens, whole)
    with pytest.raises(KeyboardInterrupt):
        fit(MODEL, OPTIM, train, tokens, stopped, Stop(5))
    fit(MODEL, OPTIM, train, tokens, stopped)
    assert trace(stopped) == trace(whole)
    assert weights(stopped) == weights(whole)
    records = read_metrics(whole / "metrics.jsonl")
    assert [("answers_only" in one, "bits_per_byte" in one) for one in records[:3]] == [(False, False)] * 2 + [
        (True, True)
    ]
    assert records[2]["answers_only"] == ["heldout"]
    assert all(0 < one["targets"] < 4 * 48 for one in records)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_losses_equal_a_plain_loop_over_conversations(tokens: Path, llama: Path, tmp_path: Path, micro: int) -> None:
    """transformers and torch alone, fp32: every conversation its own pass, mean over the answers' tokens of a step."""
    from transformers import AutoModelForCausalLM

    optim = OptimConfig(matrices="adamw", adamw=AdamWConfig(lr=0.003), clip_norm=None, schedule=ScheduleConfig())
    train = settings(
        init_from=str(llama),
        packing="best_fit",
        micro_batch_sequences=micro,
        dtype="float32",
        sequence_length=160,
        steps=3,
    )
    fit(ModelConfig(), optim, train, tokens, tmp_path / "run")
    losses = [one["loss"] for one in read_metrics(tmp_path / "run" / "metrics.jsonl")]

    peer = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).train()
    vectors, matrices = ([p for p in peer.parameters() if (p.dim() < 2) is small] for small in (True, False))
    groups = [{"params": matrices, "weight_decay": optim.adamw.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=optim.adamw.lr, betas=optim.adamw.betas, eps=optim.adamw.eps)
    stream = training_stream(Timeline(train, optim.schedule), TokenShards(tokens).sets["train"])
    expected = []
    for step in range(3):
        total, count = torch.zeros(()), 0
        for index in range(4 * step, 4 * step + 4):
            row, _, ids = stream.sequence(index)
            for number in range(int(ids.max()) + 1):
                text = row[ids == number].tolist()
                marks = torch.tensor(answers(text, tokens)[1:])
                logits = peer(input_ids=torch.tensor([text]), use_cache=False).logits[0, :-1]
                nll = F.cross_entropy(logits, torch.tensor(text[1:]), reduction="none")
                total, count = total + nll[marks].sum(), count + int(marks.sum())
        adamw.zero_grad()
        (total / count).backward()
        for group in adamw.param_groups:
            group["lr"] = optim.adamw.lr * lr_factor(step + 1, 3, optim.schedule)
        adamw.step()
        expected.append(float(total.detach() / count))
    assert losses == pytest.approx(expected, rel=1e-4)


def test_held_out_bits_are_those_of_the_answers(tokens: Path, llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    shards = TokenShards(tokens)
    heldout = shards.sets["heldout"]
    rows = eval_batches(heldout, 400, 2, 10**6, masked=True)
    result = bits_per_byte(load_model(llama), rows, shards.token_bytes, 64)
    peer = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    tokenizer = open_tokenizer(tokens / "tokenizer").tokenizer
    texts = [heldout.read(i, 0, int(n)).tolist() for i, n in enumerate(heldout.lengths)]
    bits, size, begin = 0.0, 0, 0
    for text in texts:
        marks = answers(text, tokens)
        for piece in range(begin // 400, (begin + len(text) - 1) // 400 + 1):
            first, last = max(begin, piece * 400) - begin, min(begin + len(text), piece * 400 + 401) - begin
            with torch.no_grad():
                log_p = peer(input_ids=torch.tensor([text[first:last]])).logits[0].log_softmax(-1)
            for i in range(first + 1, last):
                if marks[i]:
                    bits -= float(log_p[i - 1 - first, text[i]]) / math.log(2)
                    size += len(tokenizer.decode([text[i]]).encode())
        begin += len(text)
    assert result.bytes == size
    assert result.bits_per_byte == pytest.approx(bits / size, rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_without_an_answer_moves_nothing_but_decay(llama: Path, dtype: str) -> None:
    model = load_model(llama).train()
    model.compute_dtype = getattr(torch, dtype)
    before = {name: one.clone() for name, one in model.named_parameters()}
    silent = Batch(torch.ones(2, 8, dtype=torch.long), torch.full((2, 8), -1), None)
    optim = OptimConfig(muon=MuonConfig(weight_decay=0.0), adamw=AdamWConfig(weight_decay=0.0))
    result = train_step(model, build_optimizers(model, optim), [silent, silent], settings(), 1.0, 1.0)
    assert (result.loss, result.grad_norm, result.batch_het, result.targets) == (0.0, 0.0, 0.0, 0)
    assert all(torch.equal(one, before[name]) for name, one in model.named_parameters())


def test_a_selection_is_fine_tuned_and_the_model_can_chat(tokens: Path, llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    only = str(select(tmp_path / "selection.yaml", ONLY))
    train = settings(
        init_from=str(llama), only=only, steps=30, checkpoint_every_steps=30, dtype="float32", batch_sequences=8
    )
    fit(ModelConfig(), OPTIM, train, tokens, tmp_path / "run")
    losses = [one["loss"] for one in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    export_folder(list_checkpoints(tmp_path / "run")[0], tmp_path / "model")
    assert check_parity(tmp_path / "model")["passed"]
    before, after = load_model(llama).state_dict(), load_model(tmp_path / "model").state_dict()
    changed = {name.removeprefix("peer.") for name, one in after.items() if not torch.equal(one, before[name])}
    assert changed == set(ONLY)
    peer: Any = AutoTokenizer.from_pretrained(tmp_path / "model")
    question = [{"role": "user", "content": "What is 1 + 2?"}]
    prompt = peer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    ours = TextModel(tmp_path / "model")
    assert ours.encode_chat(question) == prompt
    end = peer.convert_tokens_to_ids("<|im_end|>")
    assert end in ours.stop
    assert end in AutoModelForCausalLM.from_pretrained(tmp_path / "model").generation_config.eos_token_id


def test_a_set_without_answers_is_refused(tokens: Path, tmp_path: Path) -> None:
    with publish(tmp_path / "tokens", "tokens") as folder:
        shutil.copytree(tokens, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        values = json.loads((folder / "index.json").read_text())
        values["sets"]["train"]["trained"] = 0
        (folder / "index.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match="no token is to be trained on"):
        fit(MODEL, OPTIM, settings(), tmp_path / "tokens", tmp_path / "run")


def test_held_out_questions_are_asked_and_change_no_number(tokens: Path, tmp_path: Path) -> None:
    asked = settings(sequence_length=128, eval={"every_steps": 3, "questions": 5})
    plain = settings(sequence_length=128, eval={"every_steps": 3})
    for name, train in (("asked", asked), ("plain", plain)):
        fit(MODEL, OPTIM, train, tokens, tmp_path / name)
    records = read_metrics(tmp_path / "asked" / "metrics.jsonl")
    found = [one["choices"]["heldout"] for one in records if "choices" in one]
    assert [(one["questions"], one["chance"]) for one in found] == [(5, 0.25)] * 2
    assert all(0 <= one["accuracy"] <= 1 for one in found)
    trained = [{key: value for key, value in one.items() if key != "choices"} for one in trace(tmp_path / "asked")]
    assert trained == trace(tmp_path / "plain")
    assert weights(tmp_path / "asked") == weights(tmp_path / "plain")
    fit(MODEL, OPTIM, plain, tokens, tmp_path / "asked")
