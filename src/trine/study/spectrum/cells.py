"""Each model on each data as an ordinary study: written as YAML into the output folder, trained by `study.runner`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trine.config.load import to_yaml
from trine.errors import BadInput
from trine.manifest import write_file
from trine.study.plan import Program
from trine.study.spectrum.config import WayConfig
from trine.study.spectrum.layout import Cell, Layout


def program(layout: Layout) -> Program:
    """The runs of every cell that is prepared. Raises BadInput where none is, or a cell's recipe does not fit."""
    paths = [_write(layout, cell, found) for cell in layout.cells if (found := layout.read_prepared(cell)) is not None]
    if not paths:
        raise BadInput(f"{layout.kept}: nothing is prepared yet; run the study without --report first")
    return Program(paths, layout.out, kept=layout.kept, words=layout.words())


def _write(layout: Layout, cell: Cell, prepared: dict[str, Any]) -> Path:
    """OUT/cells/CELL.yaml and the base beside it; the path of the former."""
    path, config = layout.out / "cells" / f"{cell.name}.yaml", layout.config
    path.parent.mkdir(parents=True, exist_ok=True)
    base = layout.tuning(cell).model_dump(mode="json", exclude={"inputs"}, exclude_none=True)
    study = {
        "title": f"{cell.model.name} on {cell.data.name}",
        "claim": config.question,
        "base": f"{cell.name}-base.yaml",
        "seeds": list(config.seeds),
        "held_out": config.held_out,
        "arms": [_arm(layout, cell, arm, prepared["arms"].get(arm.name, {})) for arm in config.arms],
        "measures": ["bits_per_byte"],
        "plot": {"curve": "loss"},
    }
    for file, values in ((path.with_name(study["base"]), base), (path, study)):
        if not file.is_file() or file.read_text() != to_yaml(values):
            write_file(file, to_yaml(values))
    return path


def _arm(layout: Layout, cell: Cell, arm: WayConfig, chosen: dict[str, Any]) -> dict[str, Any]:
    grid = arm.learning_rate or layout.config.learning_rate
    changes: dict[str, Any] = {}
    if arm.lora:
        changes = {
            "train.lora.rank": chosen["rank"],
            "train.lora.alpha": 2.0 * chosen["rank"],
            "train.lora.merge": False,
        }
    elif arm.top is not None or arm.rule is not None:
        changes = {"train.only": str(layout.selection(cell, arm, "{seed}"))}
    grid_values = {"key": grid.key, "values": list(grid.values), "extensions": grid.extensions}
    return {"name": arm.name, "learning_rate": grid_values} | ({"changes": changes} if changes else {})
