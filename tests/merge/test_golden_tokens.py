"""Golden cases 27 and 28: models of different vocabularies, with mergekit beside. Rows are compared token by token.

Class E; rows that are padding, which are means of all others, in class T. mergekit adds tokens in an order that differs
from run to run, so ids are not compared.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.merge.checkpoints import read_weights
from tests.merge.golden import Tensors, llama, ours, peer, planned, write_llama
from tests.merge.tokenizers import write_tokenizer
from trine.errors import BadInput

pytest.importorskip("mergekit")
TABLES = ("model.embed_tokens.weight", "lm_head.weight")
TOKENIZERS: dict[str, tuple[list[str], list[str]]] = {
    "base": (["ab", "cd", "ef", "gh"], []),
    "a": (["cd", "ab", "xy", "ef"], ["<|one|>", "<|both|>"]),
    "b": (["ef", "xy", "uv"], ["<|both|>", "<|two|>"]),
}
"""Plain and added tokens of each model, beside 2 special ones and 26 letters."""
SIZE = {"base": 32, "a": 34, "b": 33}
HEAD = """merge_method: linear
parameters: {weight: 0.5}
models: [{model: ROOT/a}, {model: ROOT/b}, {model: ROOT/base}]
base_model: ROOT/base
"""


@pytest.fixture(scope="module", params=["F32", "BF16"])
def zoo(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Three models whose tokens differ, in ids too; `base` has 6 rows that no token uses."""
    root = tmp_path_factory.mktemp("tokens")
    for i, (name, (plain, added)) in enumerate(TOKENIZERS.items()):
        rows = SIZE[name] + (6 if name == "base" else 0)
        write_llama(root / name, llama(i, vocab_size=rows), request.param, vocab_size=rows)
        write_tokenizer(root / name, plain, added)
    return root


def loaded(folder: Path) -> dict[str, int]:
    """The vocabulary of a folder as transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).get_vocab()


def both(text: str, zoo: Path, folder: Path) -> tuple[Tensors, Tensors]:
    """Our tensors and mergekit's, its tables in the order of our ids; the vocabularies have the same tokens."""
    text = text.replace("ROOT", str(zoo))
    found, wanted = ours(text, folder / "ours"), peer(text, folder / "peer")
    mine, theirs = loaded(folder / "ours"), loaded(folder / "peer")
    assert set(mine) == set(theirs)
    assert sorted(mine.values()) == list(range(len(mine)))
    for name in TABLES:
        assert found[name].shape == wanted[name].shape
        order = np.arange(len(wanted[name]))
        for token, number in mine.items():
            order[number] = theirs[token]
        wanted[name] = wanted[name][order]
    return found, wanted


def assert_same(found: Tensors, wanted: Tensors, tokens: int) -> None:
    """Every bit, but for rows from `tokens` on, which are means over a table."""
    assert set(found) == set(wanted)
    for name, one in wanted.items():
        part = slice(tokens if name in TABLES else None)
        np.testing.assert_array_equal(found[name][part], one[part], err_msg=name)
    for name in TABLES:
        np.testing.assert_allclose(found[name][tokens:], wanted[name][tokens:], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("base", ["base", "b"])
def test_case_27_union(zoo: Path, tmp_path: Path, base: str) -> None:
    """`xy` and `<|both|>` are in a and b alone: their rows in `base` are means."""
    text = HEAD.replace("base_model: ROOT/base", f"base_model: ROOT/{base}") + "tokenizer_source: union\n"
    text = text if base == "base" else text.replace("linear", "task_arithmetic")
    found, wanted = both(text, zoo, tmp_path)
    assert_same(found, wanted, 37)
    assert loaded(tmp_path / "ours")["<|two|>"] == (36 if base == "base" else 32)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["vocab_size"] == 37


@pytest.mark.parametrize("source", ["base", "ROOT/a", "ROOT/b"])
def test_case_27_the_tokenizer_of_one(zoo: Path, tmp_path: Path, source: str) -> None:
    found, wanted = both(HEAD + f"tokenizer_source: {source}\n", zoo, tmp_path)
    assert_same(found, wanted, SIZE[Path(source).name])


@pytest.mark.parametrize("source", ["union", "ROOT/b"])
def test_case_27_padding(zoo: Path, tmp_path: Path, source: str) -> None:
    found, wanted = both(HEAD + f"tokenizer: {{source: {source}, pad_to_multiple_of: 16}}\n", zoo, tmp_path)
    assert len(found[TABLES[0]]) == 48
    assert_same(found, wanted, 37 if source == "union" else 33)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["vocab_size"] == 48


TOKENS = """tokenizer:
  source: SOURCE
  tokens:
    xy: {source: {model: {path: ROOT/b}}}
    ab: {source: ROOT/a, force: true}
    gh: {source: {kind: zero}}
    uv: {source: {kind: model_token, model: ROOT/base, token: cd}}
    "<|both|>": {source: {kind: model_token, model: ROOT/a, token_id: 5}, force: true}
    "<|new|>": {source: {kind: model_token, model: ROOT/base, token: ab}}
    cd: {source: {kind: model_token, model: ROOT/b, token: ef}, force: true}
"""


@pytest.mark.parametrize("source", ["union", "ROOT/b"])
def test_case_28_tokens_said_one_by_one(zoo: Path, tmp_path: Path, source: str) -> None:
    """`<|new|>` is in no tokenizer; what the recipe names and the output's lacks is added to it."""
    found, wanted = both(HEAD + TOKENS.replace("SOURCE", source), zoo, tmp_path)
    assert_same(found, wanted, 38 if source == "union" else 36)


def test_case_28_tokens_added_to_the_bases(zoo: Path, tmp_path: Path) -> None:
    """mergekit takes rows of the base that no token uses for tokens that it has just added; here the recipe says."""
    found, wanted = both(HEAD + TOKENS.replace("SOURCE", "base"), zoo, tmp_path)
    ids = {name: loaded(zoo / name) for name in TOKENIZERS}
    models = {name: read_weights(zoo / name) for name in TOKENIZERS}
    here = loaded(tmp_path / "ours")
    for name in TABLES:
        np.testing.assert_array_equal(found[name][:32], wanted[name][:32])
        rows = {text: {one: models[one][name][ids[one][text]] for one in models if text in ids[one]} for text in here}
        expected = {
            "xy": (rows["xy"]["a"] + 2 * rows["xy"]["b"]) / 3,
            "uv": (2 * rows["cd"]["base"] + rows["uv"]["b"]) / 3,
            "<|new|>": rows["ab"]["base"],
        }
        for text, one in expected.items():
            np.testing.assert_allclose(found[name][here[text]], one, rtol=1e-2, atol=2e-4, err_msg=text)


def test_case_28_a_token_that_no_model_has(zoo: Path, tmp_path: Path) -> None:
    """Its row is zeros in both; here the merge says so."""
    write_tokenizer(tmp_path / "other", ["ab", "mn"])
    text = HEAD + f"tokenizer_source: {tmp_path}/other\n"
    found, wanted = both(text, zoo, tmp_path)
    assert_same(found, wanted, 30)
    assert not found[TABLES[0]][29].any()
    notes = json.loads((tmp_path / "ours" / "manifest.json").read_text())["meta"]["notes"]
    assert "tokenizer: no model has 1 token(s), such as 'mn'; their rows are zeros" in notes


def test_case_27_an_added_token_without_a_row(zoo: Path, tmp_path: Path) -> None:
    """It is left out of the tokenizer by both."""
    for name in ("base", "a", "b"):
        shutil.copytree(zoo / name, tmp_path / name)
    write_tokenizer(tmp_path / "base", TOKENIZERS["base"][0], [f"<|{i}|>" for i in range(7)])
    found, wanted = both(HEAD + "tokenizer_source: base\n", tmp_path, tmp_path)
    assert "<|5|>" in loaded(tmp_path / "ours")
    assert "<|6|>" not in loaded(tmp_path / "ours")
    assert_same(found, wanted, 38)


def test_case_27_no_tokenizer_asked_for(zoo: Path, tmp_path: Path) -> None:
    """Both refuse; ours at planning."""
    text = HEAD.replace("ROOT", str(zoo))
    with pytest.raises(BadInput, match="the vocabularies differ, choose one with tokenizer_source"):
        planned(text, tmp_path)
    with pytest.raises(Exception, match=r"(?i)vocab|shape"):
        peer(text, tmp_path / "peer")


REFUSED = {
    "a token of no model": ("tokens: {uv: {source: ROOT/base}}", "'uv': .* has no token 'uv'"),
    "a named token": ("tokens: {uv: {source: {kind: model_token, model: ROOT/a, token: zz}}}", "has no token 'zz'"),
    "an id past the rows": (
        "tokens: {uv: {source: {kind: model_token, model: ROOT/a, token_id: 99}}}",
        "row 99 of .*, which has 34",
    ),
    "another model": ("tokens: {uv: {source: elsewhere}}", "'elsewhere' is not one of the models merged"),
    "two of a kind": ("tokens: {uv: {source: {kind: model_token, model: ROOT/a}}}", "takes one of token, token_id"),
    "zero of a model": ("tokens: {uv: {source: {kind: zero, model: ROOT/a}}}", "takes no model"),
    "force alone": ("tokens: {uv: {force: true}}", "force needs a source"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_at_planning(zoo: Path, tmp_path: Path, case: str) -> None:
    text, words = REFUSED[case]
    text = (HEAD + f"tokenizer: {{source: union, {text}}}\n").replace("ROOT", str(zoo))
    with pytest.raises(BadInput, match=words) as error:
        planned(text, tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_refused_of_files(zoo: Path, tmp_path: Path) -> None:
    for name in ("base", "a", "b"):
        shutil.copytree(zoo / name, tmp_path / name)
    text = (HEAD + "tokenizer_source: union\n").replace("ROOT", str(tmp_path))
    (tmp_path / "b" / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"b: has no tokenizer.json, which tokenizer_source needs of every model"):
        planned(text, tmp_path)
    (tmp_path / "b" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 0}}}')
    with pytest.raises(BadInput, match="two tokens have one id"):
        planned(text, tmp_path)
    write_tokenizer(tmp_path / "b", ["ab", "cd", "ef", "gh", "ij", "kl"])
    with pytest.raises(BadInput, match="'kl' has id 33, its model has 33 rows"):
        planned(text, tmp_path)
