"""The fine-tuning recipe with the installed command: from a model folder and public formats to a model that chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.chats import pack_chats
from tests.conftest import ROOT, Command, read_json
from tests.model.test_causal import write_peer
from trine.cli.data import show
from trine.cli.generate import generate
from trine.cli.plan import plan
from trine.completion import TextModel
from trine.data.shards import TokenShards
from trine.data.templates import CHATML
from trine.model.hf_config import copy_tokenizer
from trine.train.metrics import read_metrics

RECIPE = ROOT / "recipes" / "sft.yaml"
OWN = CHATML.replace("{{- bos_token or '' }}", "{{- '<|begin_of_text|>' }}")
SIZES = "--train.sequence_length 64 --train.batch_sequences 2 --train.micro_batch_sequences 2 --train.threads 1".split()
SHORT = (
    "--train.steps 3 --optim.schedule.warmup_steps 1 --optim.schedule.decay_steps 1 --samples.max_new_tokens 4".split()
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a chat template of its own in model/, instructions in instruct/."""
    folder = tmp_path_factory.mktemp("sft")
    tokens = pack_chats(folder / "chats", 20)
    write_peer(folder / "model", "llama", vocab_size=TokenShards(tokens).vocab_size + 12)
    copy_tokenizer(tokens / "tokenizer", folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(OWN)
    (folder / "instruct").mkdir()
    dolly = [{"instruction": f"Say {i}.", "context": "", "response": f"I say {i}."} for i in range(30)]
    gsm = [{"question": f"What is {i} + 1?", "answer": f"It is\n#### {i + 1}"} for i in range(30)]
    for name, records in (("dolly15k_no_category", [*dolly, {"instruction": "Hm?"}]), ("gsm8k_train", gsm)):
        (folder / "instruct" / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder


def options(given: Path) -> list[str]:
    return ["--model", str(given / "model"), "--instruct", str(given / "instruct"), *SIZES, *SHORT]


def test_the_recipe_makes_a_model_that_can_chat(given: Path, tmp_path: Path, trine: Command) -> None:
    from transformers import AutoTokenizer

    run = tmp_path / "run"
    done = trine("run", RECIPE, *options(given), "--out", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " of answers\n" in done.stdout
    assert "refused 1 of the records" in done.stderr
    ledger = read_json(run / "ledger.json")
    assert [one["dropped"].get("no usable conversation") for one in ledger["sources"]] == [1, None]
    rejected = read_json(run / "corpus" / "ledger.json")["rejected"]
    assert rejected["first"][0]["path"].endswith("dolly15k_no_category.jsonl:31")
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert last["answers_only"] == ["heldout"]
    assert last["bits_per_byte"]["heldout"] > 0
    assert len(read_json(run / "samples.json")["samples"]) == 3
    assert read_json(run / "parity.json")["passed"]
    assert ", of answers alone" in (run / "report.html").read_text()

    assert (run / "model" / "chat_template.jinja").read_text() == OWN
    peer: Any = AutoTokenizer.from_pretrained(run / "model")
    question = [{"role": "user", "content": "What is 1 + 1?"}]
    prompt = peer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|begin_of_text|><|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    assert TextModel(run / "model").encode_chat(question) == peer(prompt, add_special_tokens=False)["input_ids"]
    said = generate(run, prompt="What is 1 + 1?", chat=True, max_new_tokens=3)
    assert isinstance(said.record["completion"], str)
    shown = show(run, rows=1).text
    assert "⟦I say" in shown or "⟦It is" in shown


def test_it_is_planned_and_rehearsed(given: Path, tmp_path: Path, trine: Command) -> None:
    run = tmp_path / "run"
    planned = plan(RECIPE, *options(given), out=run, quick=True)
    assert planned.record["model"]["parameters"] > 10_000
    rehearsal = plan(RECIPE, *options(given)[:4], "--rehearse", "4", out=run, quick=True)
    assert rehearsal.record["model"]["vocabulary"] >= TokenShards(given / "chats" / "tokens").vocab_size
    done = trine("run", RECIPE, *options(given)[:4], "--rehearse", 4, "--train.threads", 1, "--out", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_json(run / "model" / "config.json")["model_type"] == "afmoe"
    assert len(read_metrics(run / "metrics.jsonl")) == 4
    assert (run / "model" / "chat_template.jinja").read_text() == OWN
    ends = read_json(run / "model" / "generation_config.json")["eos_token_id"]
    names = {one["content"]: one["id"] for one in read_json(run / "model" / "tokenizer.json")["added_tokens"]}
    assert ends == [names["<|end_of_text|>"], names["<|im_end|>"]]
