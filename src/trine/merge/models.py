"""Model references to opened folders: what a model is called in a config, where it lies, which tensors it holds.

Nothing is downloaded: a reference is a folder, or a repository that the Hub's cache on this machine holds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.manifest import MANIFEST, read_manifest
from trine.merge.config import ModelReference
from trine.weights.hub import model_folder
from trine.weights.index import TensorInfo, read_index


@dataclass(frozen=True)
class Model:
    """A model folder and the headers of its weights."""

    folder: Path
    tensors: dict[str, TensorInfo]

    @cached_property
    def ordered(self) -> list[str]:
        """Names in the order of the files and of the tensors in them."""
        return sorted(self.tensors, key=lambda name: (self.tensors[name].file.name, self.tensors[name].offset))

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, or an empty mapping where there is none."""
        path = self.folder / "config.json"
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise BadInput(f"{path}: not JSON ({error})") from None
        if not isinstance(found, dict):
            raise BadInput(f"{path}: not a mapping")
        return found

    @cached_property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of the files that a manifest in the folder lists."""
        if not (self.folder / MANIFEST).is_file():
            return {}
        return {name: entry["sha256"] for name, entry in read_manifest(self.folder)["files"].items()}


def open_models(references: list[ModelReference]) -> dict[ModelReference, Model]:
    """Each reference's folder and headers. Raises BadInput with a line per model that cannot be opened."""
    models, problems = {}, []
    for one in references:
        try:
            if one.lora is not None:
                raise BadInput(
                    f"'{one}': adapters are not merged on the fly yet; merge '{one.lora}' into the model first"
                )
            folder = model_folder(one.model.path, one.model.revision)
            models[one] = Model(folder, read_index(folder))
        except BadInput as error:
            problems.append(str(error))
    if problems:
        raise BadInput("\n".join(problems))
    return models
