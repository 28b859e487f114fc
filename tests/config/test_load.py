"""Configs: what a good one becomes, and one clear line for each thing wrong with a bad one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from trine.config.load import diff_config, load_config, read_resolved, to_yaml
from trine.config.reference import markdown
from trine.errors import BadInput
from trine.recipe import VERB_OPTIONS, Config

GOOD = """\
inputs:
  - {name: texts, kind: path, default: "builtin:python-docs"}
  - {name: rounds, kind: integer, default: 30}
corpus:
  sources:
    - {name: main, path: "${texts}"}
  heldout_fraction: 0.1
tokenizer: {vocab_size: 500}
model:
  hidden_size: 64
  num_experts: 8
train:
  steps: ${rounds}
"""


def load(tmp_path: Path, text: str | bytes = GOOD, *options: str) -> Any:
    path = tmp_path / "c.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(Config, path, options, verb_options=VERB_OPTIONS)


def refused(tmp_path: Path, text: str | bytes, *options: str) -> list[str]:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text, *options)
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def test_defaults_inputs_and_options_meet(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD, "--rounds", "40", "--optim.muon.lr", "2e-2", "--train.eval.every_steps=5").config
    assert config.corpus.sources[0].path == "builtin:python-docs"
    assert config.train.steps == 40
    assert config.optim.muon.lr == 0.02
    assert config.train.eval.every_steps == 5
    assert config.train.sequence_length == 512


def test_environment_is_expanded_and_dollar_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TEXTS", "/some/where")
    text = "corpus: {sources: [{name: a, path: '${MY_TEXTS}/books'}, {name: b, path: '$${MY_TEXTS}'}]}"
    paths = [source.path for source in load(tmp_path, text).config.corpus.sources]
    assert paths == ["/some/where/books", "${MY_TEXTS}"]


def test_resolved_text_loads_back_to_the_same_hash(tmp_path: Path) -> None:
    first = load(tmp_path, GOOD)
    (tmp_path / "resolved.yaml").write_text(to_yaml(first.resolved))
    again = load_config(Config, tmp_path / "resolved.yaml", verb_options=VERB_OPTIONS)
    assert again.hash == first.hash
    assert read_resolved(tmp_path / "resolved.yaml") == first.resolved


@pytest.mark.parametrize("value", ["a: b", "# x", "yes", "1e5", "${X}", "é\n\u2028", "'", '"', "- x", "", " a ", "~"])
def test_any_text_survives_writing_and_reading(tmp_path: Path, value: str) -> None:
    (tmp_path / "r.yaml").write_text(to_yaml({"a": {"b": [value, value], "d": [{"c": value, "e": {"f": value}}]}}))
    assert read_resolved(tmp_path / "r.yaml") == {"a": {"b": [value, value], "d": [{"c": value, "e": {"f": value}}]}}


def test_hash_depends_on_values_not_on_writing(tmp_path: Path) -> None:
    assert load(tmp_path, "train: {steps: 1000}").hash == load(tmp_path, "# x\ntrain:\n  steps: 1_000\n").hash
    assert load(tmp_path, "train: {steps: 1000}").hash != load(tmp_path, "train: {steps: 1001}").hash


def test_differences_are_named(tmp_path: Path) -> None:
    old, new = load(tmp_path, GOOD).resolved, load(tmp_path, GOOD, "--train.seed", "3").resolved
    assert diff_config(old, new) == ["train.seed: 0, now 3"]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(10)
)
MALFORMED: dict[str, tuple[str | bytes, str]] = {
    "empty": (b"", "c.yaml:1: the file is empty"),
    "comment only": ("# nothing\n", "c.yaml:1: the file is empty"),
    "a list": ("- train\n", "c.yaml:1: the file holds a list; expected keys"),
    "a word": ("train\n", "c.yaml:1: the file holds a single value"),
    "not UTF-8": (b"train:\n  steps: \xff\n", "c.yaml:2: byte 0xff is not UTF-8"),
    "binary": (b"\x7fELF\x00\x01", "c.yaml:1: control character"),
    "huge": (b"# " + b"x" * (1 << 18), "larger than 128 KiB"),
    "tab": ("train:\n\tsteps: 5\n", "c.yaml:2: a tab where only spaces may stand"),
    "unknown key": ("train:\n  stpes: 5\n", "c.yaml:2: train.stpes: unknown key; did you mean 'steps'?"),
    "unknown section": ("trian:\n  steps: 5\n", "c.yaml:1: trian: unknown key; did you mean 'train'?"),
    "key of another section": ("train:\n  hidden_size: 64\n", "c.yaml:2: train.hidden_size: unknown key; `hidden_size` belongs under model"),
    "duplicate key": ("train:\n  steps: 5\n  steps: 6\n", "c.yaml:3: key 'steps' is given twice (first on line 2)"),
    "text for a number": ("train:\n  steps: many\n", "c.yaml:2: train.steps: got 'many', expected a whole number"),
    "number for text": ("corpus:\n  sources:\n    - name: a\n      path: 5\n", "c.yaml:4: corpus.sources.0.path: got 5, expected text"),
    "yes is text": ("train:\n  document_mask: yes\n", "c.yaml:2: train.document_mask: got 'yes', expected true or false"),
    "fraction for a count": ("train:\n  steps: 2.5\n", "c.yaml:2: train.steps: got 2.5, expected a whole number"),
    "below the limit": ("train:\n  steps: 0\n", "c.yaml:2: train.steps: got 0, expected at least 1"),
    "above the limit": ("corpus:\n  sources: [{name: a, path: b}]\n  heldout_fraction: 1\n", "c.yaml:3: corpus.heldout_fraction: got 1, expected less than 1"),
    "not finite": ("optim:\n  muon: {lr: .nan}\n", "c.yaml:2: .nan is not a finite number"),
    "too large": ("optim:\n  muon: {lr: 1e999}\n", "too large to be a finite number"),
    "not a choice": ("train:\n  dtype: bflota16\n", "c.yaml:2: train.dtype: got 'bflota16', expected one of bfloat16, float32; did you mean 'bfloat16'?"),
    "section that is a value": ("train: 5\n", "c.yaml:1: train: got 5, expected a section with keys tokens, steps"),
    "missing key": ("corpus:\n  sources:\n    - name: a\n", "c.yaml:3: corpus.sources.0.path: missing; expected: File, folder or glob"),
    "empty list": ("corpus:\n  sources: []\n", "c.yaml:2: corpus.sources: got an empty list, expected at least 1 entry"),
    "unset variable": ("corpus:\n  sources: [{name: a, path: '${NO_SUCH_NAME}/x'}]\n", "${NO_SUCH_NAME} has no value"),
    "open variable": ("corpus:\n  sources: [{name: a, path: '${OPEN'}]\n", "not closed by }"),
    "open quote": ("corpus:\n  sources: [{name: 'a, path: b}]\n", "a quote opened here is never closed"),
    "open list": ("corpus:\n  sources: [{name: a, path: b}\n", "is not closed by ]"),
    "indentation": ("train:\n    steps: 5\n  seed: 1\n", "c.yaml:3:"),
    "colon in text": ("train: steps: 5\n", "c.yaml:1: unexpected ':'"),
    "alias bomb": (BOMB, "aliases expand to more than"),
    "self alias": ("train: &a\n  steps: *a\n", "lies inside the value it stands for"),
    "unknown alias": ("train:\n  steps: *nothing\n", "alias *nothing has no anchor"),
    "deep nesting": ("a: " + "[" * 500 + "]" * 500 + "\n", "nested deeper than 40 levels"),
    "python tag": ("train: !!python/object/apply:os.system ['true']\n", "is not allowed; a config is plain data"),
    "merge key": ("a: &a {steps: 1}\ntrain:\n  <<: *a\n", "c.yaml:3: merge keys (<<) are not supported"),
    "two documents": ("train: {steps: 5}\n---\ntrain: {steps: 6}\n", "c.yaml:2: a second document begins here"),
    "preset": ("model:\n  preset: nanno\n", "preset 'nanno' is not one of nano, mini, large; did you mean 'nano'?"),
    "heads": ("model:\n  num_attention_heads: 3\n", "c.yaml:2: model.num_attention_heads 3 is not a multiple of num_key_value_heads 2"),
    "batch": ("train:\n  batch_sequences: 10\n  micro_batch_sequences: 4\n", "c.yaml:2: train.batch_sequences 10 is not a multiple"),
    "warmup": ("train: {steps: 10}\noptim:\n  schedule:\n    warmup_steps: 11\n", "c.yaml:4: optim.schedule.warmup_steps 11 + decay_steps 0 exceed train.steps 10"),
    "two sources": ("corpus:\n  sources: [{name: a, path: b}, {name: a, path: c}]\n", "two sources are named 'a'"),
    "eval set": ("corpus: {sources: [{name: a, path: b}]}\ntrain:\n  eval: {sets: [trian]}\n", "train.eval.sets names 'trian'; the corpus makes train"),
    "builtin": ("corpus: {sources: [{name: a, path: 'builtin:python-doc'}]}\n", "did you mean 'builtin:python-docs'?"),
    "layer types": ("model:\n  layer_types: [full_attention]\n", "model.layer_types has 1 entries, num_hidden_layers is 8"),
    "input named as an option": ("inputs: [{name: out, kind: text, default: x}]\n", "an input may not be named 'out'"),
    "input default": ("inputs:\n  - {name: n, kind: integer, default: many}\n", "c.yaml:2: inputs.0.default: input 'n': got 'many', expected a whole number"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_configs_are_named_in_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    lines = refused(tmp_path, text)
    assert any(said in line for line in lines), lines
    assert all(re.match(r"c\.yaml(:\d+)?: ", line) for line in lines), lines
    assert not any("Traceback" in line or "pydantic" in line for line in lines)


def test_everything_wrong_is_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "train:\n  stpes: 5\n  seed: -1\nmodel:\n  hidden_size: big\noptim:\n  adamw: {betas: [0.9, 2]}\n"
    lines = refused(tmp_path, text, "--train.dtype", "int4")
    assert [line.partition(": ")[0] for line in lines] == [
        "c.yaml:2",
        "c.yaml:3",
        "c.yaml:5",
        "c.yaml:7",
        "--train.dtype",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--train.stpes", "5"], "--train.stpes: train.stpes: unknown key; did you mean 'steps'?"),
        (["--train.steps"], "--train.steps: needs a value"),
        (["--train.steps", "5", "--train.steps", "6"], "--train.steps: is given twice"),
        (["--txets", "x"], "--txets: no such option, input or section"),
        (["stray"], "stray: unexpected argument"),
        (["--texts", "/no/such/folder"], "--texts: no such file or folder: '/no/such/folder'"),
        (["--rounds", "few"], "--rounds: input 'rounds': got 'few', expected a whole number"),
        (["--corpus.sources.1.path", "x"], "corpus.sources has 1 entries; entry 1"),
        (["--train.eval.sets", "[a"], "is not closed by ]"),
        (["--train..steps", "1"], "expected names between dots"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: list[str], said: str) -> None:
    lines = refused(tmp_path, GOOD, *options)
    assert any(said in line for line in lines), lines


def test_a_required_input_asks_for_itself(tmp_path: Path) -> None:
    text = "inputs:\n  - {name: texts, kind: path, help: your texts}\ntrain: {steps: 5}\n"
    assert refused(tmp_path, text) == ["c.yaml:2: input 'texts' is not given: add --texts VALUE (your texts)"]


@pytest.mark.parametrize("path", ["absent.yaml", "."])
def test_files_that_cannot_be_read(tmp_path: Path, path: str) -> None:
    with pytest.raises(BadInput, match=r"no such file|is a folder"):
        load_config(Config, tmp_path / path)


def test_the_written_reference_is_that_of_the_models() -> None:
    """docs/config.md is made by `trine schema --markdown --out docs/config.md`."""
    assert (ROOT / "docs" / "config.md").read_text() == markdown(Config)
