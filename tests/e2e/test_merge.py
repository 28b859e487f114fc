"""`trine merge` through the installed command, on checkpoints that transformers wrote and then reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Command
from tests.merge.checkpoints import read_weights, transformers_model, write_weights


def load(folder: Path) -> Any:
    """The model through transformers, which must miss nothing and know everything; it generates."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    assert not info["mismatched_keys"], info
    tokens = model.generate(torch.tensor([[1, 2, 3]]), min_new_tokens=4, max_new_tokens=4, do_sample=False)
    assert tokens.shape == (1, 7)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "afmoe"])
def test_a_merge_loads_in_transformers(trine: Command, tmp_path: Path, kind: str) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        transformers_model(tmp_path / name, kind, seed)
    (tmp_path / "merge.yaml").write_text(
        "merge_method: ties\nbase_model: base\nmodels:\n"
        "  - {model: a, parameters: {weight: 0.5, density: 0.6}}\n"
        "  - {model: b, parameters: {weight: [0.2, 0.8]}}\n"
    )
    plan = trine("merge", "merge.yaml", "out", "--dry-run", "--json", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert not (tmp_path / "out").exists()
    done = trine("merge", "merge.yaml", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["bytes"] == sum(json.loads(plan.stdout)["files"].values())
    found, base = read_weights(tmp_path / "out"), read_weights(tmp_path / "base")
    assert {name: one.shape for name, one in found.items()} == {name: one.shape for name, one in base.items()}
    load(tmp_path / "out")
    again = trine("merge", "merge.yaml", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for name in record["files"]:
        if name.endswith(".safetensors"):
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_aligned_experts_give_the_original_back(trine: Command, tmp_path: Path) -> None:
    transformers_model(tmp_path / "a", "qwen3_moe", 0)
    original = read_weights(tmp_path / "a")
    order = [2, 0, 3, 1]
    other = {}
    for name, values in original.items():
        head, found, rest = name.partition(".experts.")
        number, _, kind = rest.partition(".")
        other[name] = original[f"{head}.experts.{order[int(number)]}.{kind}"] if found else values
        if name.endswith("mlp.gate.weight"):
            other[name] = values[order]
    write_weights(tmp_path / "b" / "model.safetensors", other, "BF16")
    (tmp_path / "merge.yaml").write_text(
        "merge_method: linear\nparameters: {weight: 0.5}\nmodels: [{model: a}, {model: b}]\n"
    )
    done = trine("merge", "merge.yaml", "out", "--align-experts", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "experts of 'b' aligned in 4 layers: 16 moved" in done.stdout
    out = read_weights(tmp_path / "out")
    assert all(np.array_equal(out[name], original[name]) for name in original)
    assert "--align-experts" in (tmp_path / "out" / "README.md").read_text()
    load(tmp_path / "out")


def test_a_report_is_one_page_that_asks_the_network_for_nothing(trine: Command, tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        transformers_model(tmp_path / name, "qwen3_moe", seed)
    (tmp_path / "merge.yaml").write_text(
        "merge_method: dare_ties\nbase_model: base\nparameters: {weight: 0.5, density: 0.7}\n"
        "models: [{model: a}, {model: b}]\n"
    )
    done = trine("merge", "merge.yaml", "out", "--align-experts", "--report", "pages/out.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "pages" / "out.html").read_text()
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["labels"] == ["a", "b", "the merge"]
    assert [one["kind"] for one in data["kinds"]].count("mlp.experts.*.up_proj") == 1
    again = trine("report", "out", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out.html").read_text().split('id="data">')[1].split("</script>")[0]) == data


def test_layers_are_stacked(trine: Command, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        transformers_model(tmp_path / name, "llama", seed)
    (tmp_path / "merge.yaml").write_text(
        "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 3]}]\n"
        "  - sources: [{model: b, layer_range: [1, 4]}]\n"
    )
    done = trine("merge", "merge.yaml", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load(tmp_path / "out").config.num_hidden_layers == 6
    out, a, b = (read_weights(tmp_path / name) for name in ("out", "a", "b"))
    for layer, (source, number) in enumerate([(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 3)]):
        name = "model.layers.{}.mlp.up_proj.weight"
        np.testing.assert_array_equal(out[name.format(layer)], source[name.format(number)])
    np.testing.assert_array_equal(out["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    np.testing.assert_array_equal(out["lm_head.weight"], b["lm_head.weight"])


def test_a_tied_head_stays_tied_and_an_untied_one_is_merged(trine: Command, tmp_path: Path) -> None:
    transformers_model(tmp_path / "tied", "llama", 0, tie_word_embeddings=True)
    transformers_model(tmp_path / "tied2", "llama", 1, tie_word_embeddings=True)
    transformers_model(tmp_path / "free", "llama", 2)
    config = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: tied}, {model: %s}]\n"
    for other, held in (("tied2", False), ("free", True)):
        (tmp_path / "merge.yaml").write_text(config % other)
        done = trine("merge", "merge.yaml", f"out-{other}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ("lm_head.weight" in read_weights(tmp_path / f"out-{other}")) == held
        model = load(tmp_path / f"out-{other}")
        assert model.config.tie_word_embeddings != held
    embedding = read_weights(tmp_path / "tied")["model.embed_tokens.weight"]
    head = read_weights(tmp_path / "free")["lm_head.weight"]
    merged = read_weights(tmp_path / "out-free")["lm_head.weight"]
    np.testing.assert_allclose(merged, (embedding + head) / 2, rtol=0.01)


def test_mistakes_are_exit_2_and_write_nothing(trine: Command, tmp_path: Path) -> None:
    transformers_model(tmp_path / "a", "llama", 0)
    transformers_model(tmp_path / "deep", "llama", 0, num_hidden_layers=5)
    transformers_model(tmp_path / "wide", "llama", 0, vocab_size=80)
    config = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: %s}]\n"
    for other, words in (
        ("deep", "'deep' has 5 layers"),
        ("wide", "the vocabularies differ"),
        ("aa", "no such folder; did you mean 'a'?"),
    ):
        (tmp_path / "merge.yaml").write_text(config % other)
        done = trine("merge", "merge.yaml", "out", cwd=tmp_path)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    (tmp_path / "merge.yaml").write_text(
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 9]}]}]\n"
    )
    done = trine("merge", "merge.yaml", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "layer_range [0, 9] of 'a', which has 4 layers" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "deep", "merge.yaml", "wide"]
