"""What `--dry-run` prints: the stages, where each result goes, and the size of the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trine.cli.config import parameters
from trine.cli.result import Shown
from trine.config.load import Loaded
from trine.recipe import Config
from trine.train.timeline import Timeline


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
        timeline = Timeline(config.train, config.optim.schedule)
        record["stages"]["train"] = {
            "steps": config.train.steps,
            "tokens": timeline.tokens(config.train.steps),
            "phases": [_phase(timeline, number) for number in range(timeline.spans[-1].phase + 1)],
            "parameters": parameters(config),
        }
    return Shown(record, _text(record))


def _phase(timeline: Timeline, number: int) -> dict[str, int]:
    spans = [span for span in timeline.spans if span.phase == number]
    if not spans:  # shorter than a step of the phase before
        return {"begin_tokens": timeline.train.phases[number - 1].begin_tokens, "steps": 0}
    return {
        "begin_tokens": spans[0].first_token,
        "steps": sum(span.steps for span in spans),
        "sequence_length": spans[-1].train.sequence_length,
        "batch_sequences": spans[-1].train.batch_sequences,
    }


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
            lines.append(f"  train      {stage['steps']:,} steps, {stage['tokens']:,} tokens{size}")
            for number, phase in enumerate(stage["phases"]):
                batch = f"{phase['batch_sequences']:,} x {phase['sequence_length']:,} tokens" if phase["steps"] else ""
                begin = f"             phase {number} from {phase['begin_tokens']:,} tokens"
                lines.append(f"{begin}: {phase['steps']:,} steps of {batch or 'nothing'}")
            continue
        lines.append(f"  {name:10} {stage['out']}{' (there already)' if stage['done'] else ''}")
        for source in stage.get("sources", ()):
            size = f"{source['files']} files, {source['bytes']:,} bytes" if source["files"] is not None else "builtin"
            lines.append(f"             from {source['name']}: {size}")
    return "\n".join(lines)
