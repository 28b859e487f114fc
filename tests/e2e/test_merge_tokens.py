"""`trine merge` of models with different tokenizers through the installed command; transformers reads the result."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.conftest import Command
from tests.e2e.test_merge import load
from tests.merge.checkpoints import read_weights, transformers_model
from tests.merge.tokenizers import write_tokenizer


def test_a_union_of_vocabularies_loads_and_generates(trine: Command, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for seed, (name, plain, added) in enumerate(
        (("base", ["ab", "cd"], []), ("chat", ["cd", "ab", "xy"], ["<|turn|>"]))
    ):
        size = 28 + len(plain) + len(added)
        transformers_model(tmp_path / name, "llama", seed, vocab_size=size)
        write_tokenizer(tmp_path / name, plain, added)
    (tmp_path / "merge.yaml").write_text(
        "merge_method: ties\nbase_model: base\nmodels: [{model: chat, parameters: {weight: 1}}]\n"
        "tokenizer: {source: union, pad_to_multiple_of: 20}\nchat_template: chatml\n"
    )
    plan = trine("merge", "merge.yaml", "out", "--dry-run", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    done = trine("merge", "merge.yaml", "out", "--report", "out.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model, tokenizer = load(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == 40
    assert tokenizer.encode("ab <|turn|>", add_special_tokens=False) == [28, 31]
    assert tokenizer.tokenize("xy ab") == ["xy", "ab"]
    talk = [{"role": "user", "content": "ab"}]
    assert tokenizer.apply_chat_template(talk, tokenize=False) == "<|im_start|>user\nab<|im_end|>\n"
    out, chat = (read_weights(tmp_path / one)["model.embed_tokens.weight"] for one in ("out", "chat"))
    ids = AutoTokenizer.from_pretrained(tmp_path / "chat").get_vocab()
    for text in ("ab", "xy", "<|turn|>"):
        np.testing.assert_allclose(out[tokenizer.get_vocab()[text]], chat[ids[text]], rtol=0.01, atol=1e-3)
    again = trine("merge", "merge.yaml", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    files = [json.loads((tmp_path / one / "manifest.json").read_text())["files"] for one in ("out", "again")]
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]
    assert files[0]["tokenizer.json"] == files[1]["tokenizer.json"]


def test_vocabularies_that_do_not_fit_are_said_before_anything_is_merged(trine: Command, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        transformers_model(tmp_path / name, "llama", seed)
    write_tokenizer(tmp_path / "a", ["ab"])
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
    (tmp_path / "merge.yaml").write_text(text + "tokenizer_source: union\n")
    done = trine("merge", "merge.yaml", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "b: has no tokenizer.json, which tokenizer_source needs of every model" in done.stderr
    write_tokenizer(tmp_path / "b", ["ab"])
    (tmp_path / "merge.yaml").write_text(text + "tokenizer: {source: base, tokens: {ax: {source: a}}}\n")
    done = trine("merge", "merge.yaml", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "tokenizer.tokens: 'ax': 'a' has no token 'ax'" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "merge.yaml"]
