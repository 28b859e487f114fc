"""bench/gpu.py without a GPU: its refusal, its time limits, and every part of it with tiny shapes on the CPU."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "bench" / "gpu.py"


def driver() -> Any:
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_machine_without_a_gpu_is_refused_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "needs a CUDA device" in done.stderr


@pytest.mark.parametrize(
    ("end", "said"), [("time.sleep(60)", "not done in 2 s"), ("sys.exit(3)", "failed with exit code 3")]
)
def test_a_part_that_hangs_or_dies_keeps_its_rows_and_gets_a_failed_one(end: str, said: str) -> None:
    gpu = driver()
    row = {"name": "a", "unit": "error", "ours": 0.5, "peer": None, "ratio": 2.0, "goal": 1.0}
    code = f"import sys, time; print({gpu.ROW + json.dumps(row)!r}, flush=True); {end}"
    kept, failed = gpu.run_part("b", [sys.executable, "-c", code], 2)
    assert kept == row
    assert (failed["name"], failed["unit"], failed["ratio"]) == ("part/b", said, 0.0)


def test_the_parts_together_take_less_than_nine_minutes() -> None:
    assert sum(driver().PARTS.values()) < 9 * 60


@pytest.mark.slow
def test_every_part_runs_small_on_the_cpu() -> None:
    gpu = driver()
    done = subprocess.run([sys.executable, SCRIPT, "--rehearse"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line[len(gpu.ROW) :]) for line in done.stdout.splitlines() if line.startswith(gpu.ROW)]
    assert list(dict.fromkeys(row["name"].split("/")[0] for row in rows)) == [
        *("attention", "experts", "loss", "muon", "step", "generate"),
        *("mfu", "mfu_measured", "tokens"),
    ]
    wrong = [row for row in rows if row["unit"] in ("error", "waits") and row["ratio"] < 1]
    assert not wrong
    assert {"mfu/moe", "mfu/dense"} <= {row["name"] for row in rows}
