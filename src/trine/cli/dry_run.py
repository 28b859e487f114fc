"""What `--dry-run` prints: the stages, where each result goes, and the size of the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trine.cli.config import parameters
from trine.cli.result import Shown
from trine.config.load import Loaded
from trine.recipe import Config


def dry_run_of(loaded: Loaded[Config], out: Path, whole: bool) -> Shown:
    """What `trine run` (`whole`) or `trine train` would do."""
    config = loaded.config
    stages = {"corpus": "corpus", "tokenizer": "tokenizer", "pack": "tokens"} if whole else {}
    record: dict[str, Any] = {"out": str(out), "stages": {}}
    for name, folder in stages.items():
        if getattr(config, name) is not None:
            record["stages"][name] = {"out": str(out / folder), "done": (out / folder).exists()}
    if whole and config.corpus is not None:
        record["stages"]["corpus"]["sources"] = [_source(one) for one in config.corpus.sources]
    if config.train is not None:
        train = config.train
        per_step = train.batch_sequences * train.sequence_length
        record["stages"]["train"] = {
            "steps": train.steps,
            "tokens_per_step": per_step,
            "tokens": per_step * train.steps,
            "parameters": parameters(config),
        }
    return Shown(record, _text(record))


def _source(source: Any) -> dict[str, Any]:
    if source.path.startswith("builtin:"):
        return {"name": source.name, "files": None, "bytes": None}
    from trine.data.sources import list_files

    files = list_files(source)
    return {"name": source.name, "files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def _text(record: dict[str, Any]) -> str:
    lines = [f"into {record['out']}, nothing written yet by this command:"]
    for name, stage in record["stages"].items():
        if name == "train":
            counts = stage["parameters"]
            size = f", {counts['total']:,} parameters, {counts['active']:,} active" if counts else ""
            work = f"{stage['steps']:,} steps of {stage['tokens_per_step']:,} tokens = {stage['tokens']:,}"
            lines.append(f"  train      {work}{size}")
            continue
        lines.append(f"  {name:10} {stage['out']}{' (there already)' if stage['done'] else ''}")
        for source in stage.get("sources", ()):
            size = f"{source['files']} files, {source['bytes']:,} bytes" if source["files"] is not None else "builtin"
            lines.append(f"             from {source['name']}: {size}")
    return "\n".join(lines)
