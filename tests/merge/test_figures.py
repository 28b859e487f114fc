"""The figures of a merge against sums in fp64 over whole tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.merge.checkpoints import random_tensors, read_weights, write_weights
from trine.merge.engine import Options, merge
from trine.merge.figures import figures
from trine.merge.models import open_models
from trine.merge.plan import Plan, make_plan
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
