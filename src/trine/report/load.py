"""What a run folder holds, read for display; a run that is not finished, or was killed, reads just as well."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine.errors import BadInput


@dataclass(frozen=True)
class RunFiles:
    """The parts of a run that a report shows; what is not there yet is empty."""

    name: str
    metrics: list[dict[str, Any]]
    """One record per step, in order."""
    config: str
    """config.yaml as it is written."""
    ledger: dict[str, Any]
    samples: list[dict[str, str]]
    parity: dict[str, Any]
    plan: dict[str, Any]
    disk: dict[str, int]
    """Bytes of the newest checkpoint and of the exported model, where there are any."""


def load_run(run: Path) -> RunFiles:
    """Read `run`. Raises BadInput when it is no run folder, or when a file in it is damaged."""
    if not (run / "metrics.jsonl").is_file():
        raise BadInput(f"{run}: has no metrics.jsonl; expected the folder of a training run")
    config = run / "config.yaml"
    ledger, samples, parity, plan = (_json(run / f"{name}.json") for name in ("ledger", "samples", "parity", "plan"))
    return RunFiles(
        name=run.resolve().name,
        metrics=_metrics(run / "metrics.jsonl"),
        config=config.read_text() if config.is_file() else "",
        ledger=ledger,
        samples=samples.get("samples", []),
        parity=parity,
        plan=plan,
        disk=_disk(run),
    )


def _disk(run: Path) -> dict[str, int]:
    newest = max((run / "checkpoints").glob("step-*"), key=lambda path: path.stat().st_mtime, default=None)
    folders = {"checkpoint": newest, "model": run / "model"}
    return {
        name: sum(file.stat().st_size for file in path.glob("*.safetensors")) for name, path in folders.items() if path
    }


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: holds no mapping of keys")
    return value


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl; a last line that a killed process left half written is left out."""
    records = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                int(record["step"])
            except (ValueError, KeyError, TypeError) as error:
                raise BadInput(f"{path}:{number}: not a step's metrics ({error!r})") from None
            records.append(record)
    return records
