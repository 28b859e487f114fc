"""`trine merge --sweep` through the installed command, killed with its score command running and taken up again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import Command
from tests.merge.checkpoints import random_tensors, write_weights

SCORE = """import json, struct, sys, numpy
data = open(sys.argv[1] + "/model.safetensors", "rb").read()
start = 8 + struct.unpack("<Q", data[:8])[0]
values = numpy.frombuffer(data[start:], numpy.float32)
print(json.dumps({"mean": float(abs(values).mean()), "spread": float(values.std())}))
"""


def test_a_killed_sweep_ends_in_the_same_table(trine: Command, tmp_path: Path) -> None:
    base = random_tensors(0)
    for number, name in enumerate(("base", "a", "b")):
        write_weights(tmp_path / name / "model.safetensors", random_tensors(number, base=base if number else None))
    (tmp_path / "score.py").write_text(SCORE)
    (tmp_path / "merge.yaml").write_text(
        "merge_method: ties\nbase_model: base\nparameters: {density: 0.5}\nmodels:\n"
        "  - {model: a, parameters: {weight: 0.5}}\n  - {model: b, parameters: {weight: 0.5}}\n"
    )
    (tmp_path / "sweep.yaml").write_text(
        f"score: '{sys.executable} score.py {{model}}'\nsearch: cma\nevaluations: 7\npopulation: 3\n"
        "goals: {mean: min, spread: max}\nvary:\n"
        "  - {at: models.0.parameters.weight, low: 0, high: 1}\n  - {at: parameters.density, low: 0.1, high: 1}\n"
    )
    words = ("merge", "merge.yaml", "out", "--sweep", "sweep.yaml")
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("trine")), *words],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    journal, deadline = tmp_path / "out" / "sweep.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and (not journal.exists() or journal.read_bytes().count(b"\n") < 5):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "pareto.json").exists()
    done = trine(*words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["merges"]) == 7
    assert any(one["pareto"] for one in record["merges"])
    whole = trine("merge", "merge.yaml", "whole", "--sweep", "sweep.yaml", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "whole" / "pareto.json").read_bytes() == (tmp_path / "out" / "pareto.json").read_bytes()
    assert "pareto   whole/" in whole.stdout
    assert "default-src 'none'" in (tmp_path / "out" / "sweep.html").read_text()
    chosen = trine("merge", "out/0002.yaml", "final", cwd=tmp_path)
    assert chosen.returncode == 0, chosen.stderr
    refused = trine(*words, "--seed", "4", cwd=tmp_path)
    assert (refused.returncode, "another config" in refused.stderr) == (2, True)
