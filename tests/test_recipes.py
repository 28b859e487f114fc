"""Every recipe that comes with trine is good, and those of the published systems hold the published figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from trine.cli.main import verbs
from trine.config.load import load_config
from trine.merge.reading import load_recipe
from trine.merge.scopes import lookup
from trine.merge.sweep_config import SweepConfig
from trine.recipe import Config
from trine.steps import has_steps, load_steps


@pytest.mark.parametrize(
    "recipe",
    sorted(
        [
            *(ROOT / "recipes").glob("*.yaml"),
            *(ROOT / "recipes" / "sec-merges").glob("*.yaml"),
            ROOT / "recipes" / "studies" / "base.yaml",
        ]
    ),
    ids=lambda path: path.stem,
)
def test_every_recipe_is_good(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRINE_DATA", "/somewhere")
    if recipe.stem == "sec-sweep":
        assert load_config(SweepConfig, recipe).config.others
    elif recipe.parent.name == "sec-merges" or recipe.stem == "sec-merge":
        assert load_recipe(recipe).dtype == "bfloat16"
    elif has_steps(recipe):
        assert load_steps(recipe, [], verbs()).config.steps
    else:
        config = load_config(Config, recipe).config
        assert config.corpus is not None
        assert config.train is not None


def test_the_merge_of_filings_is_the_released_one() -> None:
    """Weights and densities of arcee-ai/Llama-3-SEC-Base's mergekit_config.yml."""
    plan = load_recipe(ROOT / "recipes" / "sec-merge.yaml")
    assert (plan.method, str(plan.base)) == ("ties", "base/model")
    (whole,) = plan.modules[None]
    found = {}
    for part in whole.parts[:2]:
        scopes = [part.parameters, *whole.scopes]
        for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight", "norm.weight"):
            for position in (0.0, 1 / 3, 1.0):
                values = lookup(plan.spec.inputs, scopes, name, position)
                found[str(part.model), name.split(".")[3 if "layers" in name else 0], position] = values
    weight = {key: one["weight"] for key, one in found.items()}
    for kind, last in (("mlp", 0.25), ("self_attn", 0.0), ("norm", 0.25)):
        assert [weight["cpt/model", kind, at] for at in (0.0, 1 / 3, 1.0)] == pytest.approx([0.25, 0.5, last])
        assert [weight["instruct/model", kind, at] for at in (0.0, 1 / 3, 1.0)] == pytest.approx([0.75, 0.5, 1 - last])
    assert {key[0]: one["density"] for key, one in found.items()} == {"cpt/model": 0.75, "instruct/model": 1.0}
