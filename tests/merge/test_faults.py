"""A seeded sample of what bench/faults.py does to merges at length: kills, flipped bits, cut files, a full disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import faults_merge
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def row(kind: Any, folder: Path) -> Any:
    """The row over a forked process that has not started threads; kernels are compiled by then."""
    from trine.merge.arithmetic import _kernels

    _kernels()
    return kind(folder)


@pytest.mark.parametrize(
    ("kind", "seeds"),
    [
        (faults_merge.KillMerge, range(4)),
        (faults_merge.DamageMerge, range(12)),
        (faults_merge.StrayByte, range(5)),
        (faults_merge.FullDisk, range(6)),
    ],
)
def test_a_sample_of_faults(kind: Any, seeds: range, tmp_path: Path) -> None:
    trials = row(kind, tmp_path)
    for seed in seeds:
        trials.trial(seed)


def test_a_fault_that_does_harm_fails_its_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checks of the engine the trials fail: they can."""
    monkeypatch.setattr("trine.merge.engine._Run._there", lambda self, file, job, *_: job.name in self.journal.done)
    trials = row(faults_merge.DamageMerge, tmp_path)
    failed = 0
    for seed in range(6, 10):
        try:
            trials.trial(seed)
        except AssertionError:
            failed += 1
    assert failed
