"""The model that an argument names: a folder, or what a run has come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trine.errors import BadInput

if TYPE_CHECKING:
    from trine.cli.live import Bars, Plain


def model_folder(given: Path, watch: Plain | Bars) -> Path:
    """A model folder, checkpoint or adapter as it is; of a run its model, adapter or newest whole checkpoint."""
    from trine.chain import pick_checkpoint

    for folder in (given, given / "model", given / "adapter"):
        if (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
            return folder
    if not given.is_dir():
        raise BadInput(f"{given}: no such folder; expected a model folder, a checkpoint, or a run")
    if not (given / "checkpoints").is_dir():
        raise BadInput(
            f"{given}: holds no config.json, no model/ and no checkpoints/; expected a model folder or a run"
        )
    return pick_checkpoint(given, None, watch)
