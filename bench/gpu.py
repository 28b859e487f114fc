"""Every GPU path: right against fp32 and float64, then fast against transformers. One run of under nine minutes.

    python bench/gpu.py [--part NAME ...] [--json FILE]     python bench/gpu.py --rehearse

Needs a CUDA device, this checkout, torch, transformers and pydantic; no installation, no network, no files: weights and
tokens are made here. Each part is a process with a time limit of its own, so that one that hangs, or finds no memory,
leaves the others; its row then says so with ratio 0. Rows of the first six parts hold an error against its limit.
`mfu` and `mfu_measured` are the share of the card's nominal bf16 peak, and of the fastest product seen in that part,
that our training step uses; `tokens` compares it with transformers' step, eager and compiled.
`--rehearse` goes through all parts with tiny shapes on the CPU, without goals.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

PARTS = {
    "attention": 80,
    "experts": 35,
    "loss": 40,
    "muon": 30,
    "step": 75,
    "generate": 35,
    "moe": 130,
    "dense": 110,
}
"""Seconds each may take."""
ROW = "ROW "


def run_part(name: str, command: Sequence[str], limit: float) -> list[dict[str, Any]]:
    """The rows that `command` prints, shown as they come; one more of ratio 0 when it fails or exceeds `limit`."""
    rows: list[dict[str, Any]] = []
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, end)
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(ROW):
            rows.append(json.loads(line[len(ROW) :]))
            show(rows[-1])
        else:
            print(f"    {line.rstrip()}", flush=True)
    code = process.wait()
    timer.cancel()
    if code:
        said = f"not done in {limit:.0f} s" if late.is_set() else f"failed with exit code {code}"
        rows.append({"name": f"part/{name}", "unit": said, "ours": None, "peer": None, "ratio": 0.0, "goal": 1.0})
        show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    ours, peer = ("" if row[key] is None else f"{row[key]:.4g}" for key in ("ours", "peer"))
    print(f"{row['name']:44} {row['unit']:>14} {ours:>10} {peer:>12} {row['ratio']:10.3f} {row['goal']:6}", flush=True)


def missing() -> str | None:
    """What this machine lacks for a run; None when it lacks nothing."""
    try:
        import pydantic  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        return f"bench/gpu.py needs torch, transformers and pydantic: {error}"
    if not torch.cuda.is_available():
        return "bench/gpu.py needs a CUDA device, and torch sees none; --rehearse goes through it on the CPU"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only this one; may be repeated")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes on the CPU, no goals")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.part or list(PARTS)
    lacks = None if options.rehearse else missing()
    if lacks:
        print(lacks, file=sys.stderr)
        return 2
    if options.inside or options.rehearse:  # this process does the work
        from gpu_parts import run

        for name in names:
            for row in run(name, options.rehearse):
                print(ROW + json.dumps(row), flush=True)
        return 0
    from table import finish

    print(f"{'row':44} {'unit':>14} {'trine':>10} {'transformers':>12} {'ratio':>10} {'goal':>6}")
    rows: list[dict[str, Any]] = []
    for name in names:
        rows += run_part(name, [sys.executable, __file__, "--part", name, "--inside"], PARTS[name])
    return finish(rows, options.json)


if __name__ == "__main__":
    raise SystemExit(main())
