"""A study through the installed command: killed in the middle, gone on with, equal to runs that were not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Command, read_json
from tests.study.bases import write_study
from trine.config.load import load_config
from trine.recipe import Config
from trine.train.loop import fit
from trine.train.metrics import CLOCK

STUDY = """\
title: Balance
claim: it matters
base: base.yaml
seeds: [0, 1]
arms:
  - name: smebu
    learning_rate: {key: optim.muon.lr, values: [1.0e-7, 0.02, 1.0e+30], extensions: 0}
  - name: none
    changes: {train.balance.update: none}
    learning_rate_of: smebu
claims:
  - {measure: max_vio, arm: smebu, against: none, expected: lower}
measures: [bits_per_byte, max_vio, bias_change]
plot: {curve: max_vio}
"""


class Work:
    """A study that was killed with its workers at work, and then run to its end."""

    def __init__(self, folder: Path, trine: Command) -> None:
        self.folder, self.study = folder, write_study(folder, STUDY)
        self.out = folder / "out"
        self.killed_at = self._kill()
        self.left = [path.name for path in self.out.glob("arms/*") if (path / "metrics.jsonl").exists()]
        self.done = trine("study", self.study, "--out", self.out, "--jobs", 2, "--json", cwd=folder)

    def _kill(self) -> int:
        program = Path(sys.executable).with_name("trine")
        words = [str(program), "study", str(self.study), "--out", str(self.out), "--jobs", "2"]
        process = subprocess.Popen(words, cwd=self.folder, stderr=subprocess.DEVNULL)
        deadline, steps = time.monotonic() + 120, list[int]()
        while time.monotonic() < deadline:
            steps = [len(path.read_bytes().splitlines()) for path in self.out.glob("arms/*/metrics.jsonl")]
            if any(7 <= one < 39 for one in steps):
                break
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return max(steps)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, trine: Command) -> Work:
    made = Work(tmp_path_factory.mktemp("study"), trine)
    assert made.done.returncode == 0, made.done.stderr
    return made


def trace(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in one.items() if k not in CLOCK} for one in records]


def test_every_run_is_finished_once_and_the_hopeless_rates_are_not_chosen(work: Work) -> None:
    assert work.left
    assert work.killed_at < 40
    names = sorted(path.name.rpartition("-")[0] for path in (work.out / "arms").iterdir())
    assert names == sorted(
        [
            "smebu-1e-07-seed0",
            "smebu-0.02-seed0",
            "smebu-1e+30-seed0",
            "smebu-0.02-seed1",
            "none-0.02-seed0",
            "none-0.02-seed1",
        ]
    )
    assert json.loads(work.done.stdout)["runs"] == 6


def test_a_run_that_was_killed_equals_one_that_was_not(work: Work, tmp_path: Path) -> None:
    run = work.out / "arms" / next(name for name in work.left if "1e+30" not in name)
    config = load_config(Config, run / "config.yaml").config
    assert config.model is not None
    assert config.train is not None
    fit(config.model, config.optim, config.train, work.folder / "tokens", tmp_path / "again")
    assert trace(run) == trace(tmp_path / "again")


def test_finished_runs_keep_figures_and_no_checkpoints(work: Work) -> None:
    for run in (work.out / "arms").iterdir():
        assert not (run / "checkpoints").exists()
        assert (run / "report.html").is_file()
        assert read_json(run / "result.json")["environment"]["threads"] == "1"


def test_the_page_has_the_claim_with_an_interval(work: Work) -> None:
    text = (work.out / "evidence.md").read_text()
    assert "6 of 6 runs are finished" in text
    assert "| MaxVio of smebu lower than of none | × " in text
    assert (work.out / "evidence" / "tiny.svg").exists()


def test_again_trains_nothing_and_report_writes_elsewhere(work: Work, trine: Command, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.out.glob("arms/*/metrics.jsonl")}
    again = trine("study", work.study, "--out", work.out, cwd=work.folder)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in work.out.glob("arms/*/metrics.jsonl")} == before
    page = tmp_path / "docs" / "evidence.md"
    told = trine("study", work.study, "--out", work.out, "--report", "--evidence", page, cwd=work.folder)
    assert told.returncode == 0, told.stderr
    assert page.read_text() == (work.out / "evidence.md").read_text()


def test_a_dry_run_lists_the_runs_and_writes_nothing(work: Work, trine: Command, tmp_path: Path) -> None:
    listed = trine("study", work.study, "--out", tmp_path / "none", "--dry-run", cwd=work.folder)
    assert listed.returncode == 0, listed.stderr
    assert "6 runs, 0 done, 23,040 tokens" in listed.stdout
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name at least one study"),
        (["absent.yaml"], "no such file"),
        (["{study}", "{study}"], "same name"),
        (["{study}", "--arm", "nonne"], "did you mean 'none'"),
        (["{study}", "--train.stepz", "3"], "stepz"),
        (["{study}", "--train.tokens", "nowhere"], "nowhere"),
    ],
)
def test_bad_words_are_refused(work: Work, trine: Command, words: list[str], message: str) -> None:
    done = trine("study", *(word.format(study=work.study) for word in words), cwd=work.folder)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_run_that_fails_is_named_with_its_log(work: Work, trine: Command, tmp_path: Path) -> None:
    study = write_study(tmp_path, STUDY)
    done = trine("study", study, "--out", tmp_path / "out", "--jobs", 1, "--train.eval.sets", "[gone]", cwd=tmp_path)
    assert done.returncode == 1
    assert "names 'gone'" in done.stderr
    assert "exit code 2; see" in done.stderr
