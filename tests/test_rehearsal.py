"""The Trinity recipes hold the report's figures, and run whole when they are made small by one option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Command, read_json, write_texts
from trine.config.load import load_config
from trine.errors import BadInput
from trine.model.config import PRESETS
from trine.recipe import Config
from trine.train.metrics import read_metrics
from trine.train.timeline import Timeline

SIZES = ("nano", "mini", "large")
TEXT = "builtin:python-docs"


def recipe(name: str, *options: str) -> Config:
    path = ROOT / "recipes" / f"trinity-{name}.yaml"
    return load_config(Config, path, [*options, "--web", TEXT, "--math", TEXT]).config


def timeline(config: Config) -> Timeline:
    assert config.train is not None
    return Timeline(config.train, config.optim.schedule)


@pytest.mark.parametrize(
    ("name", "muon", "adamw", "length", "sequences", "tokens", "extended"),
    [
        ("nano", 1e-3, 3e-4, 4096, (4096, 8192), 10e12, 262_144),
        ("mini", 1e-3, 2e-4, 4096, (4096, 8192), 10e12, 131_072),
        ("large", 8e-4, 2e-4, 8192, (12_288, 16_384), 17e12, 262_144),
    ],
)
def test_a_recipe_is_the_report_s(
    name: str, muon: float, adamw: float, length: int, sequences: tuple[int, int], tokens: float, extended: int
) -> None:
    config = recipe(name)
    assert config.model is not None
    assert config.train is not None
    shape = PRESETS[name] | {"max_position_embeddings": max(extended, 131_072)}
    assert config.model.model_dump().items() >= shape.items()
    assert (config.optim.muon.lr, config.optim.adamw.lr) == (muon, adamw)
    assert config.optim.schedule.warmup_steps == 2000
    spans = timeline(config).spans
    assert [(s.train.sequence_length, s.train.batch_sequences) for s in spans[:2]] == [(length, n) for n in sequences]
    assert [s.phase for s in spans] == [0, 1, 2, 3, 4]
    assert spans[-1].first_token == pytest.approx(tokens, rel=1e-4)
    assert spans[-1].train.sequence_length == extended
    assert all(span.train.document_mask == (name == "large") for span in spans)
    late = "rsdb" if name == "large" else "carry_over"
    assert [s.train.packing for s in spans] == ["carry_over"] * 3 + [late] * 2
    assert config.train.balance.update == ("smebu" if name == "large" else "sign")


@pytest.mark.parametrize("name", SIZES)
def test_learning_rates_go_as_the_report_says(name: str) -> None:
    plan = timeline(recipe(name))
    last = plan.spans[-1]
    end, final = plan.train.steps, 0.05 if name == "large" else 0.0
    assert plan.lr_factor(1000) == 0.5
    assert plan.lr_factor(2000) == plan.lr_factor(plan.spans[2].first_step) == 1.0
    assert plan.lr_factor(last.first_step - 1) == pytest.approx(0.1 if name == "large" else 0.0)
    assert max(plan.lr_factor(step) for step in range(last.first_step, end + 1)) == pytest.approx(0.1, abs=1e-4)
    assert plan.lr_factor(end) == pytest.approx(final)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("steps", [40, 200])
def test_rehearsed_it_has_every_phase_and_the_same_shape_of_schedule(name: str, steps: int) -> None:
    whole, small = timeline(recipe(name)), timeline(recipe(name, "--rehearse", str(steps)))
    assert small.train.steps == steps
    assert [span.phase for span in small.spans] == [span.phase for span in whole.spans]
    for ours, full in zip(small.spans, whole.spans, strict=True):
        assert ours.steps >= max(1, steps // 20)
        assert ours.train.packing == full.train.packing
        assert ours.train.mix == full.train.mix
        assert ours.train.sequence_length <= 512
    factors = [small.lr_factor(step) for step in range(1, steps + 1)]
    ends = [sum(span.steps for span in small.spans[: k + 1]) for k in (2, 3, 4)]
    assert factors[ends[0] - 1] == 1.0
    assert factors[ends[1] - 1] == pytest.approx(whole.lr_factor(whole.spans[-1].first_step - 1), abs=1e-3)
    assert factors[-1] == pytest.approx(whole.lr_factor(whole.train.steps), abs=1e-6)


def test_a_rehearsed_batch_ramp_is_in_proportion() -> None:
    values: dict[str, Any] = {
        "steps": 10_000,
        "sequence_length": 1000,
        "batch_sequences": 64,
        "batch_ramp": {"begin_sequences": 16, "tokens": 64_000_000},
    }
    config = Config.model_validate({"train": values | {"micro_batch_sequences": 16}, "rehearse": 400})
    spans = timeline(config).spans
    assert [span.train.batch_sequences for span in spans] == [1, 2, 3, 4]
    assert spans[-1].first_token == pytest.approx(64_000_000 / 64_000 * 400 / 10_000 * 4 * 64, rel=0.05)


def test_there_must_be_something_to_rehearse() -> None:
    with pytest.raises(BadInput, match="must be there"):
        load_config(Config, None, ["--rehearse", "20"])


def test_a_recipe_runs_end_to_end_by_one_option(tmp_path: Path, trine: Command) -> None:
    """Large has everything the others have, and RSDB; text is small so that the test is quick."""
    kinds = [write_texts(tmp_path / name, 30, seed) for seed, name in enumerate(("web", "code"))]
    math = tmp_path / "math.jsonl"
    texts = write_texts(tmp_path / "math", 30, 3)
    math.write_text("".join(f'{{"answer": "{path.read_text().strip()}"}}\n' for path in sorted(texts.iterdir())))
    options = ["--web", kinds[0], "--code", kinds[1], "--math", math, "--train.threads", 1]
    done = trine("run", ROOT / "recipes" / "trinity-large.yaml", "--rehearse", 20, *options, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [one["step"] for one in records] == list(range(1, 21))
    assert sorted({one["phase"] for one in records}) == [0, 1, 2, 3, 4]
    assert records[-1]["sequence_length"] == 512
    assert read_json(tmp_path / "run" / "parity.json")["passed"]
    again = trine("check", tmp_path / "run" / "config.yaml")
    assert again.returncode == 0, again.stderr
