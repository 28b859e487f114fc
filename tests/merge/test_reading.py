"""Merge configs: what mergekit's YAML means, and one clear line for each way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from trine.errors import BadInput
from trine.merge.catalog import Parameter
from trine.merge.reading import Recipe, load_recipe
from trine.merge.scopes import lookup

LINEAR = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n"
TIES = "merge_method: ties\nbase_model: b\nmodels:\n  - model: a\n    parameters: {weight: 1, density: 0.5}\n"
SLERP = "merge_method: slerp\nbase_model: b\nmodels: [{model: b}, {model: a}]\nparameters: {t: 0.5}\n"
STACK = "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 2]}]\n"


def read(folder: Path, text: str) -> Recipe:
    path = folder / "merge.yaml"
    path.write_text(text)
    return load_recipe(path)


MALFORMED = {
    "empty": ("", 1, "empty"),
    "not a mapping": ("- a\n", 1, "list"),
    "not YAML": ("merge_method: [linear\n", 1, "not closed"),
    "no method": ("models: [{model: a}]\n", 1, "merge_method: missing"),
    "unknown method": (LINEAR.replace("linear", "liner"), 1, "did you mean 'linear'"),
    "method is a number": (LINEAR.replace("linear", "3"), 1, "merge_method"),
    "unknown top key": (LINEAR + "out_dtyp: float16\n", 5, "did you mean 'out_dtype'"),
    "key twice": (LINEAR + "merge_method: ties\n", 5, "twice"),
    "no models": ("merge_method: linear\n", 1, "none of models, slices, modules"),
    "models and slices": (LINEAR + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n", 5, "keep one"),
    "models empty": ("merge_method: linear\nmodels: []\n", 2, "at least 1 entry"),
    "models a mapping": ("merge_method: linear\nmodels: {model: a}\n", 2, "expected a list"),
    "model missing": ("merge_method: linear\nmodels:\n  - parameters: {weight: 1}\n", 3, "model: missing"),
    "model a number": ("merge_method: linear\nmodels:\n  - model: 7\n", 3, "model"),
    "two adapters": (LINEAR.replace("model: a", "model: a+b+c"), 3, "path[@revision][+lora[@revision]]"),
    "two revisions": (LINEAR.replace("model: a", "model: a@b@c"), 3, "path[@revision]"),
    "empty path": (LINEAR.replace("model: a", "model: +lora"), 3, "expected path"),
    "unknown entry key": (LINEAR.replace("parameters:", "parameter:"), 4, "did you mean 'parameters'"),
    "unknown parameter": (LINEAR.replace("weight:", "wieght:"), 4, "did you mean 'weight'"),
    "typo of density": (TIES.replace("density", "densty"), 5, "did you mean 'density'"),
    "typo of normalize": (LINEAR + "parameters: {normalise: true}\n", 5, "did you mean 'normalize'"),
    "foreign parameter": (LINEAR + "parameters: {lambda: 1}\n", 5, "unknown parameter of linear"),
    "weight a text": (LINEAR.replace("weight: 1", "weight: much"), 4, "expected a number"),
    "weight a truth": (LINEAR.replace("weight: 1", "weight: true"), 4, "expected a number"),
    "switch a text": (LINEAR + "parameters: {normalize: maybe}\n", 5, "expected true or false"),
    "empty gradient": (LINEAR.replace("weight: 1", "weight: []"), 4, "empty list"),
    "gradient with a text": (LINEAR.replace("weight: 1", "weight: [0, x]"), 4, "expected a number"),
    "filter without value": (LINEAR.replace("weight: 1", "weight: [{filter: mlp}]"), 4, "value: missing"),
    "filter misspelt": (LINEAR.replace("weight: 1", "weight: [{value: 1, fliter: mlp}]"), 4, "did you mean 'filter'"),
    "filter a number": (LINEAR.replace("weight: 1", "weight: [{value: 1, filter: 3}]"), 4, "part of a tensor's name"),
    "filters mixed": (LINEAR.replace("weight: 1", "weight: [{value: 1, filter: mlp}, 2]"), 4, "entries before"),
    "weight missing": (LINEAR.replace("    parameters: {weight: 1}\n", ""), 3, "parameter weight of linear is missing"),
    "base has no weight": (LINEAR + "base_model: b\n", 5, "has no weight"),
    "t missing": (SLERP.replace("parameters: {t: 0.5}\n", ""), 3, "parameter t of slerp is missing"),
    "no base": (TIES.replace("base_model: b\n", ""), 1, "base_model: missing"),
    "slerp of three": (SLERP.replace("{model: a}", "{model: a}, {model: c}"), 3, "takes exactly 1"),
    "stock of one": ("merge_method: model_stock\nbase_model: b\nmodels: [{model: a}]\n", 3, "at least 2"),
    "passthrough of two": (STACK.replace("[{", "[{model: b, layer_range: [0, 2]}, {"), 3, "takes exactly 1"),
    "given twice": (SLERP.replace("{model: b}", "{model: a}"), 3, "given twice"),
    "range backwards": (STACK.replace("[0, 2]", "[2, 0]"), 3, "end comes before"),
    "range of one": (STACK.replace("[0, 2]", "[2]"), 3, "layer_range"),
    "range negative": (STACK.replace("[0, 2]", "[-1, 2]"), 3, "at least 0"),
    "range a text": (STACK.replace("[0, 2]", "all"), 3, "layer_range"),
    "ranges differ": (
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n  - sources:\n"
        "      - {model: a, layer_range: [0, 2]}\n      - {model: b, layer_range: [0, 3]}\n",
        6,
        "as many",
    ),
    "base not a source": (
        "merge_method: ties\nbase_model: b\nparameters: {weight: 1}\n"
        "slices: [{sources: [{model: a, layer_range: [0, 2]}]}]\n",
        4,
        "not among the sources",
    ),
    "no such dtype": (LINEAR + "dtype: bf16\n", 5, "expected one of bfloat16"),
    "two tokenizers": (LINEAR + "tokenizer_source: base\ntokenizer: {source: base}\n", 5, "keep one"),
    "tokenizer key": (LINEAR + "tokenizer: {sorce: base}\n", 5, "did you mean 'source'"),
    "padding of zero": (LINEAR + "tokenizer: {pad_to_multiple_of: 0}\n", 5, "at least 1"),
}


@pytest.mark.parametrize(("text", "line", "words"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_config_gives_one_clear_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path / 'merge.yaml'}:{line}: "), message
    assert words in message


def test_every_mistake_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path, TIES.replace("weight: 1, density", "weight: x, densty") + "parameters: {lamda: 2}\n")
    assert [part.partition(": ")[0].rpartition(":")[2] for part in str(caught.value).splitlines()] == ["5", "5", "6"]


def test_models_become_a_slice_with_the_base_last(tmp_path: Path) -> None:
    recipe = read(tmp_path, TIES + "dtype: torch.bfloat16\n")
    (one,) = recipe.modules[None]
    assert [str(part.model) for part in one.parts] == ["a", "b"]
    assert one.parts[0].layers is None
    assert recipe.dtype == "bfloat16"
    assert [str(model) for model in recipe.models] == ["b", "a"]


def test_a_model_reference_holds_revision_and_adapter(tmp_path: Path) -> None:
    recipe = read(tmp_path, LINEAR.replace("model: a", "model: org/a@main+org/lora@v2"))
    model = recipe.models[0]
    assert (model.model.path, model.model.revision) == ("org/a", "main")
    assert model.lora is not None
    assert (model.lora.path, model.lora.revision) == ("org/lora", "v2")
    assert str(model) == "org/a@main+org/lora@v2"


def test_modules_are_kept_apart(tmp_path: Path) -> None:
    text = (
        "merge_method: linear\nparameters: {weight: 1}\nmodules:\n  decoder: {models: [{model: a}, {model: b}]}\n"
        "  encoder: {slices: [{sources: [{model: a, layer_range: [0, 2]}]}], parameters: {normalize: false}}\n"
    )
    recipe = read(tmp_path, text)
    assert list(recipe.modules) == ["decoder", "encoder"]
    assert recipe.modules["encoder"][0].scopes[1] == {"normalize": False}


NUMBER = Parameter(default=7.0)


@pytest.mark.parametrize(
    ("scopes", "tensor", "position", "value"),
    [
        ([{"w": 2}], "x", 0.0, 2.0),
        ([None, {"w": 3}], "x", 0.0, 3.0),
        ([{}, {}], "x", 0.0, 7.0),
        ([{"w": (1, 0.5, 0)}], "x", 0.0, 1.0),
        ([{"w": (1, 0.5, 0)}], "x", 1.0, 0.0),
        ([{"w": (1, 0.5, 0)}], "x", 0.25, 0.75),
        ([{"w": (4,)}], "x", 0.3, 4.0),
        ([{"w": {"value": 5, "filter": "mlp"}}, {"w": 6}], "a.mlp.b", 0.0, 5.0),
        ([{"w": {"value": 5, "filter": "mlp"}}, {"w": 6}], "a.attn.b", 0.0, 6.0),
        ([{"w": ({"value": (0, 1), "filter": "attn"}, {"value": 2})}], "a.attn.b", 0.5, 0.5),
        ([{"w": ({"value": (0, 1), "filter": "attn"}, {"value": 2})}], "a.mlp.b", 0.5, 2.0),
        ([{"w": ({"value": 1, "filter": "*"}, {"value": 2, "filter": "mlp"})}], "a.mlp.b", 0.5, 1.0),
        ([{"w": "1e-5"}], "x", 0.0, 1e-5),
    ],
)
def test_a_parameter_comes_from_the_narrowest_scope(
    scopes: list[dict[str, object] | None], tensor: str, position: float, value: float
) -> None:
    assert lookup({"w": NUMBER}, scopes, tensor, position)["w"] == pytest.approx(value)


def test_switches_step_along_a_gradient() -> None:
    switch = Parameter("switch", True)
    values = [lookup({"s": switch}, [{"s": (True, False, True)}], "x", t)["s"] for t in (0.0, 0.4, 0.6, 1.0)]
    assert values == [True, True, False, True]
