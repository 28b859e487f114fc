"""What a run writes down: metrics.jsonl always, trackers when named.

One strict-JSON object per optimizer step. On resume the lines after the checkpoint's step are cut, so the
file equals that of a run that was never interrupted.
"""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol

from trine.errors import TrineError

CLOCK = frozenset({"seconds", "tokens_per_second", "mfu", "time", "memory_bytes"})
"""Keys of a record that tell of the machine; the others are equal, bit for bit, whenever a run is repeated."""


class Observer(Protocol):
    """Who watches a run: a terminal view, a test, nobody."""

    def on_start(self, info: dict[str, Any]) -> None: ...
    def on_step(self, record: dict[str, Any]) -> None: ...
    def on_event(self, text: str) -> None: ...
    def on_end(self, summary: dict[str, Any]) -> None: ...


class Unwatched:
    """The observer that shows nothing."""

    def on_start(self, info: dict[str, Any]) -> None: ...
    def on_step(self, record: dict[str, Any]) -> None: ...
    def on_event(self, text: str) -> None: ...
    def on_end(self, summary: dict[str, Any]) -> None: ...


class MetricsLog:
    """Append-only metrics.jsonl, flushed line by line and synced before each checkpoint."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Open `path`, keeping only whole lines up to and including `resume_step`."""
        keep = _bytes_through(path, resume_step) if path.exists() else 0
        self._file = path.open("ab")
        self._file.truncate(keep)

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(_finite(record), allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()


def _bytes_through(path: Path, step: int) -> int:
    kept = 0
    with path.open("rb") as file:
        for line in file:
            try:
                done = line.endswith(b"\n") and json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):
                done = False
            if not done:
                break
            kept += len(line)
    return kept


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole records of a metrics.jsonl, oldest first; a torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _finite(one) for key, one in value.items()}
        case list():
            return [_finite(one) for one in value]
        case _:
            return value


class Tracker(Protocol):
    """A metrics service: flat numbers by step, then an end."""

    def log(self, values: dict[str, float], step: int) -> None: ...
    def finish(self) -> None: ...


def open_trackers(names: tuple[str, ...], run: Path, resume_step: int) -> list[Tracker]:
    """The named trackers, each started for this run. Raises TrineError when one's package is missing."""
    opened: list[Tracker] = []
    for name in names:
        try:
            match name:
                case "tensorboard":
                    opened.append(_TensorBoard(run, resume_step))
                case "trackio" | "wandb":
                    opened.append(_Service(name, run))
        except ImportError as error:
            raise TrineError(f"train.track names {name}, but {error}; install 'trine[track]'") from None
    return opened


class _TensorBoard:
    def __init__(self, run: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=resume_step + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def finish(self) -> None:
        self._writer.close()


class _Service:
    """Trackio and Weights & Biases, which share one interface."""

    def __init__(self, name: str, run: Path) -> None:
        import importlib

        module = importlib.import_module(name)
        extra = {"dir": str(run), "id": run.resolve().name} if name == "wandb" else {}
        with redirect_stdout(sys.stderr):
            self._run = module.init(project="trine", name=run.resolve().name, resume="allow", **extra)

    def log(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()


def flat_numbers(record: dict[str, Any]) -> dict[str, float]:
    """Scalars of a record for a tracker: `bits_per_byte/SET` for sets, `time/PART`, `router/NAME/LAYER` per layer."""
    flat: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, int | float) and key != "step":
            flat[key] = value
    for name, value in record.get("bits_per_byte", {}).items():
        flat[f"bits_per_byte/{name}"] = value
    for name, found in record.get("choices", {}).items():
        flat[f"choices/{name}"] = found["accuracy"]
    for name, value in record.get("time", {}).items():
        flat[f"time/{name}"] = value
    router = record.get("router", {})
    for name in (key for key in router if key != "layer"):
        for layer, value in zip(router["layer"], router[name], strict=True):
            flat[f"router/{name}/{layer}"] = value
    return flat
