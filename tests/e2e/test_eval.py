"""`trine eval` through the installed command: plan, run, refusals, a run that has not ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Command, read_json, write_texts
from tests.evaluate.folders import write_llama
from trine.manifest import publish, verify


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, and data/ with texts/ of two classes and choices.jsonl."""
    folder = tmp_path_factory.mktemp("eval")
    write_llama(folder / "model")
    write_texts(folder / "data" / "texts" / "a", 2)
    write_texts(folder / "data" / "texts" / "b", 1, seed=1)
    lines = [{"question": f"{i} and", "choices": ["1", "2"], "answer": i % 2} for i in range(4)]
    (folder / "data" / "choices.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def test_a_model_is_measured_and_every_item_kept(place: Path, trine: Command) -> None:
    words = ("eval", "model", "--tasks", "texts", "choices:limit=3", "--data", "data", "--out", "scores")
    plan = trine(*words, "--dry-run", "--json", cwd=place)
    assert json.loads(plan.stdout)["tasks"]["choices:limit=3"] == {"items": 3, "requests": 6}
    assert not (place / "scores").exists()
    done = trine(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "texts: bits_per_byte" in done.stdout
    verify(place / "scores", "evaluation")
    record = read_json(place / "scores" / "results.json")
    rows = [json.loads(line) for line in (place / "scores" / "items.jsonl").read_text().splitlines()]
    texts = [one for one in rows if one["task"] == "texts"]
    assert {one["group"] for one in texts} == {"a", "b"}
    bits = sum(one["score"] * one["weight"] for one in texts) / sum(one["weight"] for one in texts)
    assert record["tasks"]["texts"]["value"] == pytest.approx(bits)
    assert record["tasks"]["choices:limit=3"]["items"] == 3
    again = trine(*words, cwd=place)
    assert again.returncode == 2
    assert "scores: already exists" in again.stderr


def test_what_is_missing_is_named_and_nothing_is_written(place: Path, trine: Command) -> None:
    done = trine("eval", "model", "--tasks", "texts", "needle:lenght=4", "--data", "data", "--out", "none", cwd=place)
    assert done.returncode == 2
    assert "did you mean 'length'" in done.stderr
    done = trine("eval", "nowhere", "--tasks", "data/texts", "--out", "none", cwd=place)
    assert done.returncode == 2
    assert "nowhere: no such folder" in done.stderr
    assert not list(place.glob("none*"))


def test_a_run_that_still_trains_is_measured_by_its_newest_checkpoint(place: Path, trine: Command) -> None:
    for step in (5, 10):
        with publish(place / "run" / "checkpoints" / f"step-{step}", "checkpoint") as folder:
            for file in (place / "model").iterdir():
                shutil.copy(file, folder)
    words = ("eval", "run", "--tasks", "data/texts:limit=1", "--out", "of-run", "--json")
    done = trine(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["folder"].endswith("step-10")
