"""The figures of a merge against sums in fp64 over whole tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.merge.checkpoints import random_tensors, read_weights, write_weights
from trine.merge.engine import Options, merge
from trine.merge.figures import figures
from trine.merge.jobs import Plan
from trine.merge.models import open_models
from trine.merge.plan import make_plan
from trine.merge.reading import load_recipe
from trine.report.merge import merge_content

HEAD = "merge_method: {1}\nbase_model: {0}/base\nparameters: {{normalize: false}}\nmodels:\n"
TWO = (
    "  - {{model: {0}/a, parameters: {{weight: 0.6, density: 0.5}}}}\n"
    "  - {{model: {0}/b, parameters: {{weight: -0.4, density: 0.25}}}}\n"
)


def made(folder: Path, text: str, method: str = "ties", options: Options | None = None) -> tuple[Plan, dict]:
    base = random_tensors(0)
    for number, name in enumerate(("base", "a", "b")):
        tensors = base if name == "base" else random_tensors(number, base=base)
        if name == "a":
            tensors["model.norm.weight"] = base["model.norm.weight"]
        write_weights(folder / name / "model.safetensors", tensors)
    (folder / "merge.yaml").write_text(text.format(folder, method))
    recipe = load_recipe(folder / "merge.yaml")
    plan = make_plan(recipe, open_models(recipe.models))
    merge(plan, folder / "out", options or Options())
    return plan, figures(plan, folder / "out", options or Options())


def test_sums_are_those_of_whole_tensors(tmp_path: Path) -> None:
    _, found = made(tmp_path, HEAD + TWO)
    weights = {name: read_weights(tmp_path / name) for name in ("base", "a", "b", "out")}

    def flat(model: str, names: list[str]) -> np.ndarray:
        return np.concatenate([(weights[model][name] - weights["base"][name]).ravel() for name in names]).astype(float)

    def trimmed(names: list[str], model: str, density: float) -> np.ndarray:
        kept = []
        for name in names:
            delta = (weights[model][name] - weights["base"][name]).ravel()
            cut = np.sort(np.abs(delta))[::-1][max(1, int(density * delta.size)) - 1]
            kept.append(delta * (np.abs(delta) >= cut))
        return np.concatenate(kept)

    names = list(weights["base"])
    layer = [name for name in names if ".layers.1." in name]
    for record, chosen in ((found["total"], names), (found["layers"][2], layer)):
        deltas = [flat(model, chosen) for model in ("a", "b", "out")]
        np.testing.assert_allclose(record["norms"], [np.linalg.norm(one) for one in deltas], rtol=1e-6)
        for i, left in enumerate(deltas):
            for j, right in enumerate(deltas):
                cosine = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
                assert record["cosines"][i][j] == pytest.approx(cosine, abs=2e-6)
        both = (deltas[0] != 0) & (deltas[1] != 0)
        assert record["sign_conflicts"] == np.mean((deltas[0] * deltas[1] < 0)[both])
        assert record["unchanged"] == np.mean(deltas[2] == 0)
        kept = [trimmed(chosen, "a", 0.5), trimmed(chosen, "b", 0.25)]
        dropped = [np.sum((k == 0) & (d != 0)) / np.sum(d != 0) for k, d in zip(kept, deltas, strict=False)]
        assert record["trimmed"] == pytest.approx(dropped)
        weighted = [np.float32(0.6) * kept[0], np.float32(-0.4) * kept[1]]
        positive = weighted[0] + weighted[1] >= 0
        against = [np.sum(np.where(positive, one < 0, one > 0)) for one in weighted]
        assert record["outvoted"] == pytest.approx(
            [one / np.sum(d != 0) for one, d in zip(against, deltas, strict=False)]
        )
    assert [one["layer"] for one in found["layers"]] == ["before", 0, 1, 2, "after"]
    assert sum(one["elements"] for one in found["kinds"]) == found["total"]["elements"]


@pytest.mark.parametrize("method", ["dare_linear", "della", "breadcrumbs"])
def test_what_is_trimmed_is_what_the_merge_leaves_alone(tmp_path: Path, method: str) -> None:
    one = "  - {{model: {0}/b, parameters: {{weight: 1.0, density: 0.6}}}}\n"
    _, found = made(tmp_path, HEAD + one, method, Options(seed=3))
    total = found["total"]
    assert total["trimmed"][0] == pytest.approx(0.4, abs=0.05)
    assert total["unchanged"] == pytest.approx(total["trimmed"][0], abs=1e-3)


def test_without_a_base_the_first_model_is_the_reference(tmp_path: Path) -> None:
    text = "merge_method: linear\nparameters: {{weight: 0.5}}\nmodels: [{{model: {0}/a}}, {{model: {0}/b}}]\n"
    _, found = made(tmp_path, text)
    assert (found["reference"], found["models"]) == (f"{tmp_path}/a", [f"{tmp_path}/b"])
    total = found["total"]
    assert total["norms"][1] == pytest.approx(total["norms"][0] / 2, rel=1e-4)
    assert total["cosines"][0][1] == pytest.approx(1)
    assert total["sign_conflicts"] is None


def test_threads_change_no_figure(tmp_path: Path) -> None:
    plan, found = made(tmp_path, HEAD + TWO, "ties", Options(threads=1))
    assert figures(plan, tmp_path / "out", Options(threads=4)) == found


def test_the_page_holds_no_number_that_json_lacks(tmp_path: Path) -> None:
    _, found = made(tmp_path, HEAD + TWO)
    meta = {"name": "out", "numerics": "accurate", "notes": [], "config": "x"}
    content = merge_content(found, meta)
    json.dumps(content, allow_nan=False)
    assert [one["title"] for one in content["charts"]][:3] == [
        "Size of the differences",
        "Cosine between the models' differences",
        "Cosine with the merged difference",
    ]
    assert {len(one["series"][0]["x"]) for one in content["charts"]} == {3}
    assert content["labels"] == ["a", "b", "the merge"]


def test_adapters_are_measured_as_the_models_they_make(tmp_path: Path) -> None:
    """A base with two adapters has the figures of two models that hold the sums."""
    base = random_tensors(0)
    rng = np.random.default_rng(5)
    write_weights(tmp_path / "base" / "model.safetensors", base)
    for name in "ab":
        factors, whole = {}, dict(base)
        for weight in ("model.layers.0.mlp.up_proj.weight", "model.layers.2.self_attn.q_proj.weight"):
            out, width = base[weight].shape
            down, up = (rng.standard_normal(one).astype(np.float32) * 0.3 for one in ((3, width), (out, 3)))
            stem = f"base_model.model.{weight.removesuffix('.weight')}"
            factors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
            whole[weight] = base[weight] + (2 * up) @ down
        write_weights(tmp_path / f"lora-{name}" / "adapter_model.safetensors", factors)
        config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
        (tmp_path / f"lora-{name}" / "adapter_config.json").write_text(json.dumps(config))
        write_weights(tmp_path / f"whole-{name}" / "model.safetensors", whole)
    found = []
    for kind in ("whole-", f"base+{tmp_path}/lora-"):
        text = HEAD + TWO.replace("{0}/", f"{{0}}/{kind}")
        (tmp_path / "merge.yaml").write_text(text.format(tmp_path, "ties"))
        recipe = load_recipe(tmp_path / "merge.yaml")
        plan = make_plan(recipe, open_models(recipe.models))
        out = tmp_path / f"out-{len(found)}"
        merge(plan, out, Options())
        found.append(figures(plan, out, Options()))
    dense, adapters = found
    assert adapters["models"] == [f"{tmp_path}/base+{tmp_path}/lora-{one}" for one in "ab"]
    meta = {"name": "out", "numerics": "accurate", "notes": [], "config": ""}
    assert merge_content(adapters, meta)["labels"] == ["lora-a", "lora-b", "the merge"]
    for left, right in [(dense["total"], adapters["total"]), *zip(dense["layers"], adapters["layers"], strict=True)]:
        for key in ("elements", "unchanged", "trimmed", "outvoted", "sign_conflicts"):
            assert left[key] == pytest.approx(right[key], abs=0.003), key
        np.testing.assert_allclose(right["norms"], left["norms"], rtol=1e-3, atol=1e-5)
    assert dense["total"]["norms"][0] > 1


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    options = Options(allow_nonfinite=True)
    made(tmp_path, HEAD + TWO)
    tensors = read_weights(tmp_path / "a")
    for name, place, value in (("lm_head.weight", 5, np.inf), ("lm_head.weight", 9, np.nan)):
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[place] = value
    write_weights(tmp_path / "a" / "model.safetensors", tensors)
    recipe = load_recipe(tmp_path / "merge.yaml")
    plan = make_plan(recipe, open_models(recipe.models))
    merge(plan, tmp_path / "with", options)
    found = figures(plan, tmp_path / "with", options)
    json.dumps(found, allow_nan=False)
    head = next(one for one in found["kinds"] if one["kind"] == "lm_head")
    base = read_weights(tmp_path / "base")["lm_head.weight"].reshape(-1)
    delta = np.delete(tensors["lm_head.weight"].reshape(-1) - base, [5, 9]).astype(float)
    assert head["norms"][0] == pytest.approx(np.linalg.norm(delta), rel=1e-6)
