"""What a model is called to the folder it lies in. Nothing is downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from trine.errors import BadInput, nearest


def model_folder(name: str, revision: str | None = None) -> Path:
    """A folder, or a repository that the Hub's cache on this machine holds. Raises BadInput when it is neither."""
    folder = Path(name).expanduser()
    if folder.is_dir() and revision is None:
        return folder
    called = f"{name}@{revision}" if revision else name
    cached = _hub_cache() / f"models--{name.strip('/').replace('/', '--')}"
    if cached.is_dir():
        revision = revision or "main"
        reference = cached / "refs" / revision
        commit = reference.read_text().strip() if reference.is_file() else revision
        if (snapshot := cached / "snapshots" / commit).is_dir():
            return snapshot
        raise BadInput(f"'{called}': the Hub's cache has no revision '{revision}' of it ({cached})")
    parent = folder.parent if folder.parent.is_dir() else Path()
    near = nearest(folder.name, [one.name for one in parent.iterdir() if one.is_dir()])
    raise BadInput(f"'{called}': no such folder{near}, and no such repository in the Hub's cache ({_hub_cache()})")


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
