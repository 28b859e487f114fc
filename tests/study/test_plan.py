"""Which runs a study needs, given those that are finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.study.bases import STUDY, write_study
from trine.config.load import load_config
from trine.errors import BadInput
from trine.model.config import ModelConfig
from trine.model.flops import count_parameters
from trine.recipe import Config
from trine.study.plan import Program, RunSpec

RECIPES = [ROOT / "recipes" / "studies" / f"{name}.yaml" for name in ("balancing", "muon", "rsdb", "architecture")]


def rate(spec: RunSpec) -> float:
    return spec.loaded.config.optim.muon.lr


def finish(spec: RunSpec, bits: float | None) -> None:
    spec.folder.mkdir(parents=True)
    result = {"bits_per_byte": bits, "diverged": None if bits else "step 3: loss nan", "tokens_per_second": 10.0}
    (spec.folder / "result.json").write_text(json.dumps(result | {"environment": {}}))


def finish_all(program: Program, bits: Callable[[float], float | None]) -> list[str]:
    """Play the runner: finish what is wanted until nothing more is; the titles in order."""
    titles = []
    while todo := [one for one in program.runs() if one.result() is None]:
        finish(todo[0], bits(rate(todo[0])))
        titles.append(todo[0].title)
    return titles


def program(folder: Path, *names: str, **options: Any) -> Program:
    return Program([write_study(folder, name=name) for name in names or ("tiny",)], folder / "out", **options)


def test_the_grid_comes_first_then_the_best_rate_with_every_seed(tmp_path: Path) -> None:
    made = program(tmp_path)
    assert {one.title for one in made.runs()} >= {
        "muon-0.01-seed0",
        "muon-0.02-seed0",
        "muon-0.04-seed0",
        "plain-seed1",
    }
    assert not any("sign" in one.title for one in made.runs())
    titles = finish_all(made, lambda lr: 2 + (lr - 0.02) ** 2)
    assert sorted(titles) == sorted(
        [
            "muon-0.01-seed0",
            "muon-0.02-seed0",
            "muon-0.04-seed0",
            "muon-0.02-seed1",
            "sign-0.02-seed0",
            "sign-0.02-seed1",
            "plain-seed0",
            "plain-seed1",
        ]
    )
    plan = made.arm("tiny", "muon")
    assert (plan.rate, plan.at_edge, len(plan.seeds)) == (0.02, False, 2)


def test_presumed_runs_are_as_many_as_come_true(tmp_path: Path) -> None:
    made = program(tmp_path)
    counted = len(made.runs(presume=True))
    finish_all(made, lambda lr: 2 + (lr - 0.02) ** 2)
    assert len(made.runs()) == counted == 8


@pytest.mark.parametrize(
    ("best", "added"), [(0.16, [0.08, 0.16, 0.32]), (0.005, [0.005, 0.0025]), (0.02, [])], ids=["up", "down", "inside"]
)
def test_a_best_rate_at_an_end_makes_the_grid_grow(tmp_path: Path, best: float, added: list[float]) -> None:
    made = program(tmp_path)
    finish_all(made, lambda lr: 2 + abs(lr - best))
    plan = made.arm("tiny", "muon")
    assert plan.rate == best
    assert not plan.at_edge
    assert set(plan.grid) == {0.01, 0.02, 0.04, *added}


def test_a_grid_that_may_not_grow_further_says_so(tmp_path: Path) -> None:
    made = program(tmp_path)
    finish_all(made, lambda lr: 3 - lr)
    plan = made.arm("tiny", "muon")
    assert plan.at_edge
    assert plan.rate == max(plan.grid) == 0.64


def test_a_rate_that_diverges_is_worse_than_any(tmp_path: Path) -> None:
    made = program(tmp_path)
    finish_all(made, lambda lr: 3 - lr if lr < 0.03 else None)
    assert made.arm("tiny", "muon").rate == 0.02
    assert not made.arm("tiny", "muon").at_edge


def test_studies_share_equal_runs_under_whatever_name(tmp_path: Path) -> None:
    one = write_study(tmp_path)
    two = write_study(tmp_path, STUDY.replace("muon", "best").replace("optim.best", "optim.muon"), "other")
    both = Program([one, two], tmp_path / "out")
    assert len(both.runs(presume=True)) == len(Program([one], tmp_path / "out").runs(presume=True))
    finish_all(Program([one], tmp_path / "out"), lambda lr: 2 + (lr - 0.02) ** 2)
    assert all(spec.result() for spec in Program([two], tmp_path / "out").runs(presume=True))


def test_one_arm_alone_brings_the_grid_it_takes_its_rate_from(tmp_path: Path) -> None:
    made = program(tmp_path, arm="sign")
    assert [one.title for one in made.runs()] == ["muon-0.01-seed0", "muon-0.02-seed0", "muon-0.04-seed0"]
    titles = finish_all(made, lambda lr: 2 + (lr - 0.02) ** 2)
    assert titles[3:] == ["sign-0.02-seed0", "sign-0.02-seed1"]
    with pytest.raises(BadInput, match="did you mean 'sign'"):
        program(tmp_path, arm="sing")


def test_arms_differ_in_what_they_change_alone(tmp_path: Path) -> None:
    made = program(tmp_path, options=["--train.z_loss", "0.1"])
    runs = {one.title: one.loaded.resolved for one in made.runs(presume=True)}
    assert runs["sign-0.02-seed0"]["train"]["balance"]["update"] == "sign"
    runs["sign-0.02-seed0"]["train"]["balance"]["update"] = "smebu"
    assert runs["sign-0.02-seed0"] == runs["muon-0.02-seed0"]
    assert runs["plain-seed1"]["model"]["attention_gate"] is False
    assert all(one["train"]["z_loss"] == 0.1 for one in runs.values())
    assert all(one["train"]["seed"] == int(title[-1]) for title, one in runs.items())


def test_scale_multiplies_tokens_and_widths(tmp_path: Path) -> None:
    small, large = program(tmp_path).runs()[0], program(tmp_path, scale=4).runs()[0]
    assert large.tokens == 4 * small.tokens
    config = large.loaded.config
    assert config.model is not None
    assert (config.model.hidden_size, config.model.moe_intermediate_size, config.model.head_dim) == (64, 32, 16)
    assert config.train is not None
    assert (config.train.eval.every_steps, config.train.checkpoint_every_steps) == (40, 20)
    with pytest.raises(BadInput, match="above 0"):
        program(tmp_path, scale=0)


def test_a_batch_ramp_counts_its_own_tokens_and_cannot_be_scaled(tmp_path: Path) -> None:
    ramp = ["--train.batch_ramp", "{begin_sequences: 2, tokens: 960}"]
    ramped, plain = program(tmp_path, options=ramp).runs()[0], program(tmp_path).runs()[0]
    assert plain.tokens - ramped.tokens > 240
    with pytest.raises(BadInput, match="leave them out"):
        program(tmp_path, options=ramp, scale=2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train.balance.update: sign", "train.balance.updat: sign", r"arm sign: .*updat: unknown key"),
        ("update: sign", "update: sing", r"arm sign: .*expected one of smebu, sign, none"),
        ("train.balance.update: sign", "corpus.min_characters: 3", "changes may name keys of model, optim, train"),
        ("train.balance.update: sign", "train.seed: 3", "no seed"),
        ("learning_rate_of: muon", "learning_rate_of: moun", "did you mean 'muon'"),
        ("learning_rate_of: muon", "learning_rate_of: plain", "no grid of its own"),
        ("values: [0.01, 0.02, 0.04]", "values: [0.01, 0.04, 0.02]", "must be positive and rise"),
        ("against: plain", "against: plane", "did you mean 'plain'"),
        (
            "measure: bits_per_byte, arm: muon, against: s",
            "measure: bits, arm: muon, against: s",
            "got 'bits', expected one of bits_per",
        ),
        ("seeds: [0, 1]", "seeds: [1, 1]", "are the same"),
        ("base: base.yaml", "base: bas.yaml", "no such file"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in STUDY
    with pytest.raises(BadInput, match=message):
        Program([write_study(tmp_path, STUDY.replace(old, new, 1))], tmp_path / "out")


def test_the_four_studies_are_of_the_promised_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRINE_DATA", "/somewhere")
    made = Program(RECIPES, tmp_path)
    base = load_config(Config, RECIPES[0].parent / "base.yaml").config
    assert base.tokenizer is not None
    for spec in made.runs(presume=True):
        assert spec.tokens >= 8e6
        model: ModelConfig | None = spec.loaded.config.model
        assert model is not None
        sized = model.model_copy(update={"vocab_size": base.tokenizer.vocab_size})
        assert 3e6 <= count_parameters(sized).active <= 6e6, spec.title
        assert (model.num_experts, model.num_experts_per_tok) == (128, 8)
    for study in made.studies.values():
        assert len(study.seeds) == 3
        grids = [arm.learning_rate for arm in study.arms if arm.learning_rate_of is None]
        assert all(grid is not None and len(grid.values) == 4 for grid in grids)


def test_a_seed_in_a_text_and_one_set_to_choose_rates_by(tmp_path: Path) -> None:
    text = STUDY.replace("train.balance.update: sign", 'train.only: "drawn-{seed}.yaml"')
    path = write_study(tmp_path, text.replace("seeds: [0, 1]", "seeds: [0, 1]\nheld_out: texts"))
    made = Program([path], tmp_path / "out")
    runs = {one.title: one.loaded.config.train for one in made.runs(presume=True)}
    assert [getattr(runs[f"sign-0.02-seed{one}"], "only", None) for one in (0, 1)] == ["drawn-0.yaml", "drawn-1.yaml"]
    for spec in made.runs():
        if spec.title.startswith("muon"):
            finish(spec, 3 - rate(spec))
            path = spec.folder / "result.json"
            scores = {"texts": abs(rate(spec) - 0.02), "other": 0.0}
            path.write_text(json.dumps(json.loads(path.read_text()) | {"scores": scores}))
    assert made.arm("tiny", "muon").rate == 0.02
