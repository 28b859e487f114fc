"""The whole chain through the installed command, on a small text, and every verb beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Command, read_json, write_texts

CONFIG = """\
inputs:
  - {name: corpus, kind: path, help: text to train on}
corpus:
  sources: [{name: small, path: "${corpus}", licence: none}]
  heldout_fraction: 0.1
tokenizer: {vocab_size: 400}
pack: {}
model:
  hidden_size: 64
  intermediate_size: 128
  moe_intermediate_size: 32
  num_hidden_layers: 4
  num_attention_heads: 2
  num_key_value_heads: 1
  head_dim: 32
  num_experts: 8
  num_experts_per_tok: 2
  sliding_window: 16
  max_position_embeddings: 512
optim:
  muon: {lr: 0.01}
  adamw: {lr: 0.005}
train:
  steps: 12
  sequence_length: 64
  batch_sequences: 8
  micro_batch_sequences: 4
  threads: 1
  checkpoint_every_steps: 4
  eval: {every_steps: 6}
samples: {prompts: ["the model"], max_new_tokens: 8}
"""


class Work:
    """A finished run and where it lies."""

    def __init__(self, folder: Path, trine: Command) -> None:
        self.folder = folder
        self.config = folder / "small.yaml"
        self.config.write_text(CONFIG)
        self.texts = write_texts(folder / "texts", 40)
        self.run = folder / "runs" / "small"
        self.done = trine("run", self.config, "--corpus", self.texts, cwd=folder)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, trine: Command) -> Work:
    made = Work(tmp_path_factory.mktemp("e2e"), trine)
    assert made.done.returncode == 0, made.done.stderr
    return made


def test_run_makes_everything_and_names_the_report_last(work: Work) -> None:
    last = work.done.stdout.strip().splitlines()[-1]
    assert Path(work.folder, last.split()[-1]) == work.run / "report.html"
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "parity.json",
        "samples.json",
        "ledger.json",
        "plan.json",
    ):
        assert (work.run / name).is_file(), name
    for name in ("corpus", "tokenizer", "tokens", "model", "checkpoints/step-12"):
        assert (work.run / name / "manifest.json").is_file(), name


def test_metrics_have_one_strict_object_per_step(work: Work) -> None:
    records = [json.loads(line) for line in (work.run / "metrics.jsonl").read_text().splitlines()]
    assert [one["step"] for one in records] == list(range(1, 13))
    keys = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "router"}
    assert all(keys <= set(one) for one in records)
    assert records[-1]["loss"] < records[0]["loss"]
    assert set(records[-1]["bits_per_byte"]) == {"heldout"}
    assert records[-1]["router"]["layer"] == [1, 2, 3]


def test_exported_model_equals_transformers(work: Work) -> None:
    parity = read_json(work.run / "parity.json")
    assert parity["passed"]
    assert parity["max_relative_logit_difference"] < 1e-5


def test_run_again_has_nothing_to_do(work: Work, trine: Command) -> None:
    before = (work.run / "metrics.jsonl").read_bytes()
    again = trine("run", work.config, "--corpus", work.texts, cwd=work.folder)
    assert again.returncode == 0, again.stderr
    assert (work.run / "metrics.jsonl").read_bytes() == before


def test_run_with_another_config_is_refused_and_names_the_difference(work: Work, trine: Command) -> None:
    other = trine("run", work.config, "--corpus", work.texts, "--train.steps", 13, cwd=work.folder)
    assert other.returncode == 2
    assert "train.steps" in other.stderr
    assert "12" in other.stderr
    assert "13" in other.stderr


def test_stages_one_by_one_give_the_same_run(work: Work, trine: Command) -> None:
    out = work.folder / "runs" / "apart"
    common = ["--corpus", work.texts]
    for verb, folder in (("corpus", "corpus"), ("tokenizer", "tokenizer"), ("pack", "tokens")):
        options = common if verb == "corpus" else [f"--{verb}.corpus", out / "corpus", *common]
        if verb == "pack":
            options += ["--pack.tokenizer", out / "tokenizer"]
        done = trine(verb, work.config, *options, "--out", out / folder, "--json", cwd=work.folder)
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)
    done = trine("train", work.config, *common, "--out", out, cwd=work.folder)
    assert done.returncode == 0, done.stderr
    ours = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    theirs = [json.loads(line)["loss"] for line in (work.run / "metrics.jsonl").read_text().splitlines()]
    assert ours == theirs
    assert (out / "model" / "config.json").is_file()


def test_export_of_a_step_verifies(work: Work, trine: Command) -> None:
    out = work.folder / "exported"
    done = trine("export", work.run, out, "--step", 8, "--verify", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parity"]["passed"] is True
    refused = trine("export", work.run, work.folder / "nothing", "--step", 5)
    assert refused.returncode == 2
    assert not (work.folder / "nothing").exists()


def test_generate_is_repeatable(work: Work, trine: Command) -> None:
    options = ["--prompt", "the model", "--max-new-tokens", 5, "--seed", 3, "--json"]
    first = trine("generate", work.run / "model", *options)
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout) == json.loads(trine("generate", work.run / "model", *options).stdout)


def test_generate_completes_a_file_of_prompts(work: Work, trine: Command, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text('{"prompt": "the model", "id": 7}\n\n{"prompt": "then a"}\n')
    options = ["--max-new-tokens", 5, "--seed", 3, "--samples", 2, "--stop", "q", "--json"]
    done = trine("generate", work.run, "--prompts", prompts, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"completions": 4, "new_tokens": 20, "out": str(out)}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["prompt"], one.get("id"), one["sample"]) for one in lines] == [
        ("the model", 7, 0),
        ("the model", 7, 1),
        ("then a", None, 0),
        ("then a", None, 1),
    ]
    assert all(one["finish"] == "length" and one["tokens"] == 5 for one in lines)
    single = trine("generate", work.run, "--prompt", "the model", *options[:4], "--json")
    assert json.loads(single.stdout)["completion"] == lines[0]["completion"]


def test_report_again_to_another_file(work: Work, trine: Command) -> None:
    out = work.folder / "copy.html"
    done = trine("report", work.run, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "default-src 'none'" in out.read_text()


def test_init_makes_a_loadable_folder(work: Work, trine: Command) -> None:
    out = work.folder / "random"
    done = trine("init", work.config, out, "--corpus", work.texts, "--model.vocab_size", 512, "--json")
    assert done.returncode == 0, done.stderr
    from transformers import AfmoeForCausalLM

    assert AfmoeForCausalLM.from_pretrained(out, local_files_only=True).config.vocab_size == 512


def test_damaged_newest_checkpoint_falls_back(work: Work, trine: Command, tmp_path: Path) -> None:
    run = tmp_path / "damaged"
    shutil.copytree(work.run, run)
    newest = run / "checkpoints" / "step-12" / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    done = trine("export", run, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "skipping damaged checkpoint step-12" in done.stderr
    assert "from step-8" in done.stdout
