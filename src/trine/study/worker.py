"""One process of a study: `python -m trine.study.worker RUN PARENT` trains the run folder RUN to its end.

It ends at once when the process PARENT is gone, so that the next command finds the folder free. What it leaves:
metrics.jsonl, report.html and, last of all, result.json; a finished run's checkpoints are removed.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from trine.chain import write_json
from trine.config.load import load_config
from trine.errors import Diverged, TrineError
from trine.manifest import digest_of
from trine.model.config import ModelConfig
from trine.recipe import Config
from trine.report.page import write_report
from trine.train.config import TrainConfig
from trine.train.loop import fit
from trine.train.meters import used_bytes
from trine.train.metrics import Unwatched, read_metrics
from trine.train.setup import folder_digest, pick_device

_ORPHAN_SECONDS = 0.2


class _Session(Unwatched):
    """Where this process began, and on what machine."""

    def __init__(self) -> None:
        self.first = 0
        self.trained: int | None = None
        self.environment: dict[str, str] = {}

    def on_start(self, info: dict[str, Any]) -> None:
        self.first = info["tokens_done"]
        self.trained = info["trained"]
        self.environment = info["environment"]

    def on_event(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def train(folder: Path) -> None:
    """Train the run in `folder` by its config.yaml, or go on with it.

    A run whose loss becomes infinite has a result too: `diverged` says where, `bits_per_byte` is null.
    """
    config = load_config(Config, folder / "config.yaml").config
    assert config.train is not None
    assert config.train.tokens is not None
    if config.train.lora is not None:
        import_module("peft")
    held = used_bytes(torch.device("cpu")) if pick_device(config.train.device).type == "cpu" else 0
    watch, began = _Session(), time.monotonic()
    try:
        model = config.model or ModelConfig()
        made = fit(model, config.optim, config.train, Path(config.train.tokens), folder, watch)
    except Diverged as error:
        result: dict[str, Any] = {"bits_per_byte": None, "diverged": str(error), "tokens_per_second": None}
    else:
        scores, seconds = made["bits_per_byte"] or {}, max(time.monotonic() - began, 1e-9)
        result = {
            "bits_per_byte": fmean(scores.values()) if scores else None,
            "diverged": None,
            "tokens_per_second": (made["tokens"] - watch.first) / seconds,
        }
    write_report(folder)
    result |= {"environment": watch.environment, "trained": watch.trained}
    write_json(folder / "result.json", result | _costs(folder, config.train, held))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _costs(folder: Path, train: TrainConfig, held: int) -> dict[str, Any]:
    """Peak bytes (see `train.meters`) less those `held` with everything imported, and the median step's seconds, which
    neither a neighbour nor a resume moves much; what the last record scored; which weights the run began with."""
    steps = read_metrics(folder / "metrics.jsonl")
    if not steps:
        return {}
    start = None if train.init_from is None else digest_of(folder_digest(Path(train.init_from).expanduser()))[:16]
    return {
        "memory_bytes": max(one["memory_bytes"] for one in steps) - held,
        "step_seconds": median(one["seconds"] for one in steps),
        "scores": steps[-1].get("bits_per_byte"),
        "choices": steps[-1].get("choices"),
        "start": start,
    }


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


def main() -> int:
    """The exit code: that of the error, 0 when the run is finished."""
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    try:
        train(folder)
    except TrineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
