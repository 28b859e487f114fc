"""Golden cases 5 to 7 and 24 to 26: types, shards, added bases, stacked layers, heads; and what both refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.merge.checkpoints import read_weights, write_weights
from tests.merge.golden import (
    Tensors,
    assert_close,
    assert_equal,
    llama,
    ours,
    peer,
    planned,
    stored_types,
    write_llama,
)
from trine.errors import BadInput, TrineError

pytest.importorskip("mergekit")
LINEAR = "merge_method: linear\nmodels:\n"


@pytest.fixture
def base() -> Tensors:
    """A base in fp32, its numbers representable in every type."""
    return llama(0)


def both(text: str, folder: Path, shard_bytes: int = 10**9) -> tuple[Tensors, Tensors]:
    """Our tensors and mergekit's, after looking at names and types."""
    text = text.replace("ROOT", str(folder))
    for one in ("ours", "peer"):
        shutil.rmtree(folder / one, ignore_errors=True)
    found = ours(text, folder / "ours", shard_bytes=shard_bytes)
    wanted = peer(text, folder / "peer", out_shard_size=shard_bytes)
    assert stored_types(folder / "ours") == stored_types(folder / "peer")
    return found, wanted


def weighted(**weights: float) -> str:
    return "".join(
        f"  - {{model: ROOT/{name}, parameters: {{weight: {weight}}}}}\n" for name, weight in weights.items()
    )


@pytest.mark.parametrize("more", ["", "dtype: float32\nout_dtype: float16", "dtype: bfloat16", "out_dtype: bfloat16"])
def test_case_5_mixed_types(tmp_path: Path, base: Tensors, more: str) -> None:
    for i, stored in enumerate(("BF16", "F16", "F32")):
        write_llama(tmp_path / stored, llama(i, base), stored)
    text = LINEAR + weighted(BF16=0.5, F16=0.3, F32=0.4) + f"tokenizer: null\n{more}\n"
    assert_equal(*both(text, tmp_path))


def test_case_6_shards_with_other_boundaries(tmp_path: Path, base: Tensors) -> None:
    for i, count in enumerate((1, 3, 5)):
        folder = write_llama(tmp_path / f"m{i}", llama(i, base), "BF16")
        split(folder, count)
    found, wanted = both(LINEAR + weighted(m0=0.5, m1=0.3, m2=0.2), tmp_path, shard_bytes=20_000)
    assert_equal(found, wanted)
    mine, theirs = (
        json.loads((tmp_path / one / "model.safetensors.index.json").read_text()) for one in ("ours", "peer")
    )
    assert set(mine["weight_map"]) == set(theirs["weight_map"])
    assert len(set(mine["weight_map"].values())) > 3
    assert all((tmp_path / "ours" / name).is_file() for name in mine["weight_map"].values())
    assert mine["metadata"]["total_size"] == sum(2 * one.size for one in wanted.values())


def split(folder: Path, count: int) -> None:
    """A model's file into `count` files with an index."""
    tensors = list(read_weights(folder).items())
    if count == 1:
        return
    (folder / "model.safetensors").unlink()
    names, where = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)], {}
    for i, name in enumerate(names):
        part = dict(tensors[i::count])
        write_weights(folder / name, part, "BF16")
        where |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_case_24_layers_of_one_model_twice_and_of_two(tmp_path: Path, base: Tensors) -> None:
    write_llama(tmp_path / "base", base)
    write_llama(tmp_path / "a", llama(1, base))
    text = """merge_method: passthrough
base_model: ROOT/base
slices:
  - sources: [{model: ROOT/base, layer_range: [0, 3]}]
  - sources:
      - model: ROOT/a
        layer_range: [1, 4]
        parameters: {scale: [{filter: o_proj, value: 0.5}, {filter: down_proj, value: 0}, {value: 1}]}
  - sources: [{model: ROOT/a, layer_range: [1, 2]}]
""".replace("ROOT", str(tmp_path))
    assert_equal(ours(text, tmp_path / "ours"), peer(text, tmp_path / "peer", clone_tensors=True))
    for one in ("ours", "peer"):
        assert json.loads((tmp_path / one / "config.json").read_text())["num_hidden_layers"] == 7


SLICED = """merge_method: {method}
base_model: ROOT/base
parameters: {{{shared}}}
slices:
  - sources:
      - {{model: ROOT/base, layer_range: [0, 2]}}
      - {{model: ROOT/a, layer_range: [1, 3]}}
  - base_model: ROOT/b
    parameters: {{{narrow}}}
    sources:
      - {{model: ROOT/b, layer_range: [2, 3]}}
      - {{model: ROOT/c, layer_range: [3, 4]}}
"""


@pytest.fixture
def four(tmp_path: Path, base: Tensors) -> Path:
    for i, name in enumerate(("base", "a", "b", "c")):
        write_llama(tmp_path / name, llama(i, base) if i else base)
    return tmp_path


def test_case_25_bases_and_parameters_per_slice(four: Path) -> None:
    """A slice of one layer has t = 1; the embedding has the first slice's parameters, norm and head the last's."""
    text = SLICED.format(method="task_arithmetic", shared="weight: [0.1, 0.9]", narrow="weight: [0.3, 0.7]")
    assert_equal(*both(text, four))
    text = SLICED.format(method="nearswap", shared="t: 0.004", narrow="t: {value: [0.001, 0.01], filter: proj}")
    assert_equal(*both(text, four))


def test_case_25_an_empty_last_slice_chooses_the_head(four: Path) -> None:
    text = """merge_method: passthrough
base_model: ROOT/base
slices:
  - sources: [{model: ROOT/a, layer_range: [0, 2]}]
  - sources: [{model: ROOT/c, layer_range: [4, 4]}]
"""
    found, wanted = both(text, four)
    assert_equal(found, wanted)
    np.testing.assert_array_equal(found["lm_head.weight"], read_weights(four / "c")["lm_head.weight"])


def test_case_25_the_head_of_two_last_sources(four: Path) -> None:
    """mergekit sizes it by the first slice and drops the second source; here it is averaged."""
    text = (
        LINEAR.replace("models:", "parameters: {weight: 1}\nbase_model: ROOT/base\nslices:").rstrip()
        + """
  - sources: [{model: ROOT/a, layer_range: [0, 2]}]
  - sources:
      - {model: ROOT/b, layer_range: [2, 4]}
      - {model: ROOT/c, layer_range: [2, 4]}
"""
    )
    found, wanted = both(text, four)
    b, c = read_weights(four / "b"), read_weights(four / "c")
    for name in ("model.norm.weight", "lm_head.weight"):
        np.testing.assert_array_equal(found.pop(name), (b[name] + c[name]) / 2)
        np.testing.assert_array_equal(wanted.pop(name), b[name])
    assert_equal(found, wanted)


TIED = {
    "linear": LINEAR + weighted(base=0.5, a=0.3, b=0.2),
    "task_arithmetic": "merge_method: task_arithmetic\nbase_model: ROOT/base\nmodels:\n" + weighted(a=0.6, b=0.4),
    "ties": "merge_method: ties\nbase_model: ROOT/base\nmodels:\n" + weighted(a=0.6, b=0.4),
}


@pytest.mark.parametrize("untied", ["", "a", "base"])
@pytest.mark.parametrize("method", TIED)
def test_case_26_tied_heads(tmp_path: Path, base: Tensors, method: str, untied: str) -> None:
    for i, name in enumerate(("base", "a", "b")):
        tensors = llama(i, base)
        if name != untied:
            del tensors["lm_head.weight"]
        write_llama(tmp_path / name, tensors)
    found, wanted = both(TIED[method], tmp_path)
    assert ("lm_head.weight" in found) == bool(untied)
    assert_equal(found, wanted)


BIAS = "model.layers.1.self_attn.q_proj.bias"
TASK = "base_model: ROOT/base\nmodels:\n" + weighted(a=0.6, b=0.4)
SOME = {
    "linear, in two": (LINEAR + weighted(base=0.5, a=0.3, b=0.2), ("base", "b")),
    "ties, not in one": ("merge_method: ties\n" + TASK, ("base", "b")),
    "slerp, in one": (
        "merge_method: slerp\nbase_model: ROOT/base\nmodels: [{model: ROOT/a}]\nparameters: {t: 0.3}",
        ("a",),
    ),
    "model_stock, in all": (
        "merge_method: model_stock\nbase_model: ROOT/base\nmodels: [{model: ROOT/a}, {model: ROOT/b}]",
        ("base", "a", "b"),
    ),
    "model_stock, in the base": (
        "merge_method: model_stock\nbase_model: ROOT/base\nmodels: [{model: ROOT/a}, {model: ROOT/b}]",
        ("base",),
    ),
}


def granites(folder: Path, base: Tensors, having: tuple[str, ...]) -> Tensors:
    """base, a and b as Granites, whose biases are optional; the bias of those that have it."""
    biases = {}
    for i, name in enumerate(("base", "a", "b")):
        tensors = llama(i, base) if i else dict(base)
        if name in having:
            biases[name] = tensors[BIAS] = np.arange(32, dtype=np.float32) * (i + 1)
        write_llama(folder / name, tensors, model_type="granite", architectures=["GraniteForCausalLM"])
    return biases


@pytest.mark.parametrize("case", SOME)
def test_case_26_a_tensor_that_some_models_lack(tmp_path: Path, base: Tensors, case: str) -> None:
    text, having = SOME[case]
    granites(tmp_path, base, having)
    found, wanted = both(text, tmp_path)
    assert BIAS in found
    if "model_stock" in case or "slerp" in case:
        assert_close(found, wanted, "F32")
    else:
        assert_equal(found, wanted)


def test_case_26_too_few_for_model_stock(tmp_path: Path, base: Tensors) -> None:
    """mergekit leaves the tensor out of the output; here it is the base's."""
    biases = granites(tmp_path, base, ("base", "b"))
    text = SOME["model_stock, in all"][0].replace("ROOT", str(tmp_path))
    assert BIAS not in peer(text, tmp_path / "peer")
    np.testing.assert_array_equal(ours(text, tmp_path / "ours")[BIAS], biases["base"])


def test_case_26_a_lone_tensor_in_another_type(tmp_path: Path, base: Tensors) -> None:
    granites(tmp_path, base, ("a",))
    found, wanted = both(SOME["slerp, in one"][0] + "\ndtype: bfloat16\n", tmp_path)
    np.testing.assert_array_equal(found[BIAS], wanted[BIAS])


def test_case_26_a_lone_tensor_is_looked_at(tmp_path: Path, base: Tensors) -> None:
    """NaN and infinity are refused in what is only copied too; mergekit writes them."""
    granites(tmp_path, base, ("a",))
    tensors = read_weights(tmp_path / "a")
    tensors[BIAS] = np.full(32, np.nan, np.float32)
    write_weights(tmp_path / "a" / "model.safetensors", tensors)
    text = SOME["slerp, in one"][0].replace("ROOT", str(tmp_path))
    with pytest.raises(TrineError, match=f"'{BIAS}' holds 32 values"):
        ours(text, tmp_path / "ours")
    assert np.isnan(peer(text, tmp_path / "peer")[BIAS]).all()


REFUSED = {
    "2 weights that sum to 0": (LINEAR + weighted(a=0.5, b=-0.5), "weights sum to 0", None),
    "7 a base without weight": (
        LINEAR + weighted(a=0.5) + "base_model: ROOT/base\n",
        "has no weight",
        "Missing required parameter weight",
    ),
    "20 della's epsilon": (
        "merge_method: della\nbase_model: ROOT/base\nparameters: {density: 0.5, epsilon: 0.6}\nmodels:\n"
        + weighted(a=0.5),
        "density 0.5 with epsilon 0.6",
        "epsilon",
    ),
    "21 model_stock of one": (
        "merge_method: model_stock\nbase_model: ROOT/base\nmodels: [{model: ROOT/a}]\n",
        "takes at least 2",
        "at least 3 inputs",
    ),
    "24 layers out of range": (
        "merge_method: passthrough\nbase_model: ROOT/a\nslices: [{sources: [{model: ROOT/a, layer_range: [2, 9]}]}]\n",
        "layer_range [2, 9] of",
        "required but not present",
    ),
    "4 no value for a tensor": (
        LINEAR + "  - {model: ROOT/a, parameters: {weight: [{filter: mlp, value: 1}]}}\n",
        "no value of weight",
        "Missing required parameter weight",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_both_refuse(four: Path, case: str) -> None:
    """Ours before anything is read; mergekit divides by the sum of weights that is 0 and writes infinities."""
    text, words, theirs = REFUSED[case]
    text = text.replace("ROOT", str(four))
    with pytest.raises(BadInput, match=words.replace("[", r"\[")):
        planned(text, four / "x")
    if theirs is None:
        assert not all(np.isfinite(one).all() for one in peer(text, four / "peer").values())
        return
    with pytest.raises(Exception, match=theirs):
        peer(text, four / "peer")


def test_case_12_directions_that_cancel(tmp_path: Path) -> None:
    """Three vectors of a plane at 120 degrees: refused by both while the tensor is merged."""
    angles = 2 * np.pi / 3 * np.arange(3)
    text = "merge_method: multislerp\nmodels:\n" + weighted(m0=1, m1=1, m2=1)
    for i, angle in enumerate(angles):
        tensors = {name: np.zeros_like(one) for name, one in llama(0).items()}
        for one in tensors.values():
            one.reshape(-1)[:2] = np.cos(angle), np.sin(angle)
        write_llama(tmp_path / f"m{i}", tensors)
    text = text.replace("ROOT", str(tmp_path)) + "parameters: {eps: 1e-6}\n"
    with pytest.raises(TrineError, match="directions cancel out"):
        ours(text, tmp_path / "ours")
    with pytest.raises(Exception, match="weighted sum of the input tensors is zero"):
        peer(text, tmp_path / "peer")
