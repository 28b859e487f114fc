"""The comparison of what to train: what is prepared, which runs follow, and what the page says of them."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT, Command, read_json
from tests.study.tunings import STUDY, write_tuning_study
from trine.cli.live import watching
from trine.config.load import load_config
from trine.errors import BadInput
from trine.model.config import ModelConfig
from trine.model.flops import count_parameters
from trine.progress import Progress, silent
from trine.recipe import Config, with_vocabulary
from trine.spectrum.scanned import read_scan
from trine.study.plan import Program, RunSpec
from trine.study.runner import keep_finished
from trine.study.spectrum.budget import budget
from trine.study.spectrum.cells import program
from trine.study.spectrum.config import SpectrumStudyConfig
from trine.study.spectrum.layout import Layout
from trine.study.spectrum.page import write_page
from trine.study.spectrum.prepare import prepare
from trine.train.loop import fit
from trine.train.metrics import CLOCK, read_metrics
from trine.train.timeline import Timeline
from trine.weights.selected import read_selection

T_TWO_PAIRS = 12.706204736
"""Student's t, 0.975, one degree of freedom."""


def open_study(path: Path, out: Path, page: Path) -> Layout:
    return Layout(path, load_config(SpectrumStudyConfig, path).config, out, page.with_suffix("") / "runs")


def prepared(layout: Layout) -> None:
    with watching() as watch:
        prepare(layout, watch)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A study that is prepared, its runs to come."""
    folder = tmp_path_factory.mktemp("tuning")
    layout = open_study(write_tuning_study(folder), folder / "out", folder / "page.md")
    prepared(layout)
    return layout


def finish(spec: RunSpec, bits: float, accuracy: float, start: str, trained: int = 1000) -> None:
    """Leave what a finished run leaves; it forgets a tenth of its bits on the book."""
    spec.folder.mkdir(parents=True, exist_ok=True)
    (spec.folder / "metrics.jsonl").write_text('{"step": 1, "tokens": 384, "loss": 3.0}\n')
    asked = {"accuracy": accuracy, "chance": 0.25, "questions": 8, "standard_error": 0.1}
    result = {
        "bits_per_byte": 99.0,
        "scores": {"heldout": bits, "books": bits / 10},
        "choices": {"heldout": asked},
        "diverged": None,
        "tokens_per_second": 50.0,
        "environment": {"torch": "2.x"},
        "memory_bytes": 3 * 2**20,
        "step_seconds": 2.0,
        "trained": trained,
        "start": start,
    }
    (spec.folder / "result.json").write_text(json.dumps(result))


def play(made: Layout, runs: Program, spared: str | None = None) -> None:
    """Finish every run but those of a title, and keep them; the rate of `random` is best at its grid's end."""
    while todo := [one for one in runs.runs() if one.result() is None and one.title != spared]:
        for spec in todo:
            train, name = spec.loaded.config.train, spec.title.rsplit("-", 2)[0]
            assert train is not None
            cell = next(cell for cell in made.cells if train.tokens == str(made.data_run(cell.data) / "tokens"))
            start = next(iter(read_json(made.prepared(cell))["before"]))
            best = 0.008 if name == "random" else 0.002
            gap = 0.1 * abs(math.log2(spec.loaded.config.optim.adamw.lr / best)) + 0.01 * train.seed
            worse = 0.02 * (1 + train.seed) if name == "random" else 0.0
            finish(spec, 2.0 + gap + worse, 0.75 if name == "lora" else 0.5, start)
    keep_finished(runs)


def test_selections_are_of_equal_size_and_random_ones_differ(made: Layout) -> None:
    cell = made.cells[0]
    about = read_json(made.prepared(cell))["arms"]
    of = {arm.name: arm for arm in made.config.arms}
    wanted = about["spectrum-50"]["parameters"]
    for name in ("random", "top-layers", "lowest-snr", "gradient-norm"):
        assert 0.9 * wanted <= about[name]["parameters"] <= wanted
    chosen = [set(read_selection(made.selection(cell, of["random"], one))) for one in (0, 1)]
    assert chosen[0] != chosen[1]
    each = about["lora"]["parameters"] / about["lora"]["rank"]
    assert abs(about["lora"]["parameters"] - wanted) <= each / 2
    assert any(note.startswith("tie broken") for note in about["spectrum-50"]["notes"])
    scans = {name: read_scan(made.scan(cell.model, name)) for name in ("calibrated", "published")}
    assert {name: scanned.measure for name, scanned in scans.items()} == {name: name for name in scans}
    lowest = read_selection(made.selection(cell, of["lowest-snr"], 0))
    up = [one for one in scans["published"].entries if one.type == "self_attn.q_proj"]
    chosen_up = [one.snr for one in up if one.name in lowest]
    assert chosen_up == sorted(one.snr for one in up)[: len(chosen_up)]


def test_prepared_twice_nothing_is_made_again(made: Layout) -> None:
    def stamps() -> dict[Path, int]:
        places = [made.out / name for name in ("pretraining", "bases", "data", "scans", "texts", "cells")]
        files = (
            path for place in places for path in place.rglob("*") if path.suffix != ".yaml" and path.name != ".lock"
        )
        return {path: path.stat().st_mtime_ns for path in files if path.is_file()}

    before = stamps()
    prepared(made)
    assert stamps() == before
    assert any(path.name == "model.safetensors" for path in before)


def test_scores_before_are_those_of_a_run_that_moves_nothing(made: Layout, tmp_path: Path) -> None:
    for cell in made.cells:
        config = made.tuning(cell)
        assert config.train is not None
        still = config.train.balance.model_copy(update={"update": "none"})
        train = config.train.model_copy(update={"steps": 1, "balance": still})
        optim = config.optim.model_copy(update={"adamw": config.optim.adamw.model_copy(update={"lr": 1e-30})})
        fit(ModelConfig(), optim, train, made.data_run(cell.data) / "tokens", tmp_path / cell.name)
        last = read_metrics(tmp_path / cell.name / "metrics.jsonl")[-1]
        (scores,) = read_json(made.prepared(cell))["before"].values()
        assert scores["bits_per_byte"] == pytest.approx(last["bits_per_byte"], rel=1e-6)
        assert scores["choices"] == last["choices"]


def test_runs_read_the_selections_and_words_stand_for_their_paths(made: Layout) -> None:
    runs = program(made)
    only = {
        spec.title: spec.loaded.config.train.only
        for spec in runs.runs(presume=True)
        if spec.loaded.config.train is not None
    }
    assert only["random-0.002-seed1"] == str(made.folder(made.cells[1]) / "random-1.yaml")
    assert only["full-0.002-seed1"] is None
    assert runs.runs(presume=True)[0].words[str(made.out / "bases" / "moe" / "model")].startswith("moe-")


def test_the_page_has_paired_intervals_and_is_the_same_without_runs(made: Layout, tmp_path: Path) -> None:
    path, page = made.path, tmp_path / "page.md"
    layout = open_study(path, tmp_path / "out", page)
    layout.kept.mkdir(parents=True)
    for cell in made.cells:
        (layout.kept / made.prepared(cell).name).write_text(made.prepared(cell).read_text())
    play(layout, program(layout))
    found = write_page(layout, program(layout), page)
    text = page.read_text()
    gaps = [-0.02 * (1 + one) for one in (0, 1)]
    half = T_TWO_PAIRS * stdev(gaps) / math.sqrt(2)
    bits = next(one for one in found if one["cell"] == "moe-sums" and one["figure"] == "bits")
    assert (bits["arm"], bits["against"], bits["verdict"]) == ("spectrum-50", "random", "not told apart")
    assert bits["mean"] == pytest.approx(fmean(gaps))
    assert (bits["low"], bits["high"]) == pytest.approx((fmean(gaps) - half, fmean(gaps) + half))
    assert "- `random`: 0.001: 2.3200, 0.002: 2.2200, 0.004: 2.1200, **0.008: 2.0200**. The best lies at" in text
    assert "| `lora`, rank 12 | 2 of 2 | 0.00 M | 0.0 | 3.0 | 1.3 | 0.2005 | 2.0050 ± 0.0071 |" in text
    assert "| 75.0% ± 0.0% | +25.0% [+25.0%, +25.0%] |" in text
    ElementTree.fromstring((tmp_path / "page" / "moe-sums.svg").read_text())
    elsewhere = open_study(path, tmp_path / "elsewhere", page)
    assert write_page(elsewhere, program(elsewhere), page) == found
    assert page.read_text() == text


def test_the_budget_counts_every_run(made: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_of(config: Config, out: Path, probe: bool, progress: Progress) -> dict[str, Any]:
        assert config.model is not None
        assert config.model.vocab_size == 320
        assert probe
        model = {"parameters": 5, "active": 4}
        return {"model": model, "work": {"tokens": 2048}, "time": {"steps_seconds": 4.0}, "note": None}

    monkeypatch.setattr("trine.study.spectrum.budget.plan_of", plan_of)
    found = budget(open_study(made.path, tmp_path / "none", tmp_path / "page.md"), silent)
    each = 40 * 2 * 192
    assert [(one["runs"], one["tokens"]) for one in found["cells"]] == [(7 * (3 + 1), 28 * each)] * 2
    scored = 2 * (512 + 8 * 4 * 0.4 * 192) / 3
    assert found["seconds"] == pytest.approx(4.0 + 2 * 28 * (each + scored) / 512)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("like: spectrum-50", "like: spectrum-5", "did you mean 'spectrum-50'"),
        ("top: 50", "top: 50, lora: true, like: full", "exclude each other"),
        ("rule: random, like: spectrum-50", "rule: random", "go with like"),
        ("rule: random, like: spectrum-50", "rule: random, like: full", "has no top"),
        ("recipe: sums.yaml", "recipe: books.yaml", "leave model and train.init_from out"),
        ("recipe: sums.yaml", "recipe: sums.yaml, options: {train.eval.sets: '[books]'}", "must name heldout"),
        (
            "{name: moe, recipe: books.yaml}",
            "{name: moe, recipe: books.yaml}, {name: two, recipe: books.yaml, options: {tokenizer.vocab_size: 300}}",
            "by another tokenizer",
        ),
    ],
)
def test_what_does_not_fit_is_refused(made: Layout, tmp_path: Path, old: str, new: str, message: str) -> None:
    text = STUDY.format(folder=made.path.parent)
    assert old in text
    path = made.path.with_name(f"{tmp_path.name}.yaml")
    path.write_text(text.replace(old, new))
    with pytest.raises(BadInput, match=message):
        open_study(path, tmp_path / "out", tmp_path / "page.md")


def test_the_shipped_study_is_what_it_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRINE_DATA", "/somewhere")
    layout = open_study(ROOT / "recipes" / "studies" / "spectrum.yaml", tmp_path / "out", tmp_path / "page.md")
    assert [cell.name for cell in layout.cells] == ["moe-filings", "moe-instruct", "dense-filings", "dense-instruct"]
    for model in layout.config.models:
        data = layout.pretraining_data().config
        sized: Any = with_vocabulary(layout.start(model).config.model_copy(update={"tokenizer": data.tokenizer}))
        assert count_parameters(sized).total >= 15_000_000
    for cell in layout.cells:
        config = layout.tuning(cell)
        assert config.train is not None
        assert Timeline(config.train, config.optim.schedule).tokens(config.train.steps) >= 2_000_000
        assert config.optim.matrices == "adamw"


def trace(run: Path) -> list[dict[str, Any]]:
    return [{key: one[key] for key in one.keys() - CLOCK} for one in read_metrics(run / "metrics.jsonl")]


def test_a_study_killed_in_the_background_goes_on(made: Layout, trine: Command) -> None:
    """One run is left to the installed command, which is killed while it trains."""
    title, words = "spectrum-50-0.002-seed1", ("spectrum", "study", made.path, "--out", made.out, "--json")
    words = (*words, "--evidence", made.kept.parent.with_suffix(".md"))
    play(made, program(made), spared=title)
    begun = trine(*words, "--background")
    assert begun.returncode == 0, begun.stderr
    steps, deadline = 0, time.monotonic() + 120
    while not steps > 6 and time.monotonic() < deadline:
        time.sleep(0.01)
        steps = max(
            [len(path.read_bytes().splitlines()) for path in made.out.glob(f"arms/{title}-*/metrics.jsonl")] + [0]
        )
    os.kill(json.loads(begun.stdout)["process"], signal.SIGKILL)
    assert 6 < steps < 40, (made.out / "study.log").read_text()
    done = trine(*words)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["runs"] == 58
    assert {one["verdict"] for one in found["comparisons"]} <= {"better", "worse", "not told apart"}
    for run in made.out.glob(f"arms/{title}-*"):
        config = load_config(Config, run / "config.yaml").config
        assert config.train is not None
        again = run.with_name(f"again-{run.name}")
        fit(ModelConfig(), config.optim, config.train, Path(str(config.train.tokens)), again)
        assert trace(run) == trace(again)
        result = read_json(run / "result.json")
        assert result["scores"] == read_metrics(again / "metrics.jsonl")[-1]["bits_per_byte"]
        assert 0 < result["trained"] <= 20480
        assert result["memory_bytes"] > 2**20
