"""metrics.jsonl: whole lines, cut at the resume step, strict JSON, trackers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trine.train.metrics import MetricsLog, flat_numbers, open_trackers, read_metrics


def write(path: Path, steps: int, resume: int = 0) -> None:
    log = MetricsLog(path, resume)
    for step in range(resume + 1, steps + 1):
        log.write({"step": step, "loss": 1.0 / step})
    log.close()


def test_resume_cuts_later_and_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 5)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 6, "lo')
    write(path, 3, resume=3)
    assert [one["step"] for one in read_metrics(path)] == [1, 2, 3]
    write(path, 5, resume=3)
    assert path.read_bytes() == whole


def test_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 2)
    with path.open("ab") as file:
        file.write(b'{"step": 3')
    assert len(read_metrics(path)) == 2


def test_non_finite_numbers_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.write({"step": 1, "loss": float("nan"), "router": {"max_vio": [float("inf"), 1.0]}})
    log.close()
    record = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert record["loss"] is None
    assert record["router"]["max_vio"] == [None, 1.0]


def test_flat_numbers_name_sets_and_layers() -> None:
    record = {
        "step": 3,
        "loss": 2.0,
        "bits_per_byte": {"heldout": 1.5},
        "router": {"layer": [1, 2], "max_vio": [0.1, 0.2]},
    }
    assert flat_numbers(record) == {
        "loss": 2.0,
        "bits_per_byte/heldout": 1.5,
        "router/max_vio/1": 0.1,
        "router/max_vio/2": 0.2,
    }


def test_tensorboard_receives_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(("tensorboard",), tmp_path, resume_step=0)
    for step in (1, 2, 3):
        tracker.log({"loss": 1.0 / step}, step)
    tracker.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [one.step for one in events.Scalars("loss")] == [1, 2, 3]


def test_wandb_offline_receives_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tracker,) = open_trackers(("wandb",), tmp_path, resume_step=0)
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert list(tmp_path.glob("wandb/offline-run-*"))


def test_trackio_receives_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    (tracker,) = open_trackers(("trackio",), tmp_path / "run", resume_step=0)
    tracker.log({"loss": 1.0}, 1)
    tracker.finish()
    assert [p for p in (tmp_path / "trackio").rglob("*") if p.is_file()]
