"""Model references to opened folders: what a model is called in a config, where it lies, which tensors it holds.

Nothing is downloaded: a reference is a folder, or a repository that the Hub's cache on this machine holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.manifest import MANIFEST, read_manifest
from trine.merge.adapter import LowRank, open_adapter
from trine.merge.config import ModelPath, ModelReference
from trine.weights.hub import model_folder
from trine.weights.index import TensorInfo, read_index, read_mapping


@dataclass(frozen=True)
class Model:
    """A model folder and the headers of its weights."""

    folder: Path
    tensors: dict[str, TensorInfo]
    adapters: dict[str, LowRank] = field(default_factory=dict)
    """What an adapter adds, by tensor."""
    types: dict[str, str] = field(default_factory=dict)
    """The model's own type of tensors that an adapter replaces whole."""

    @cached_property
    def ordered(self) -> list[str]:
        """Names in the order of the files and of the tensors in them."""
        return sorted(self.tensors, key=lambda name: (self.tensors[name].file.name, self.tensors[name].offset))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, or an empty mapping where there is none."""
        path = self.folder / "config.json"
        return read_mapping(path) if path.is_file() else {}


def open_models(references: list[ModelReference]) -> dict[ModelReference, Model]:
    """Each reference's folder and headers. Raises BadInput with a line per model that cannot be opened."""
    models, problems = {}, []
    for one in references:
        try:
            models[one] = _open(one)
        except BadInput as error:
            problems.append(str(error))
    if problems:
        raise BadInput("\n".join(problems))
    return models


def _open(reference: ModelReference) -> Model:
    folder = folder_of(reference.model)
    tensors = read_index(folder)
    if reference.lora is None:
        return Model(folder, tensors)
    adapter = open_adapter(folder_of(reference.lora), tensors)
    types = {name: tensors[name].dtype for name in adapter.replaced}
    return Model(folder, tensors | adapter.replaced, adapter.added, types)


def folder_of(path: ModelPath) -> Path:
    """The folder that a path means."""
    return model_folder(path.path, path.revision)


def checksums_in(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that a manifest in the folder lists; none without a manifest."""
    if not (folder / MANIFEST).is_file():
        return {}
    return {name: entry["sha256"] for name, entry in read_manifest(folder)["files"].items()}
