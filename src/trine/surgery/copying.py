"""Plans of copies: output tensors that are tensors of other models, or computed ones that wait in a file beside OUT.

The merge engine carries them out. What is computed is published in `.OUT.made` first and kept until OUT is there, so
that a killed build goes on with the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.manifest import MANIFEST, digest_of, publish, read_manifest
from trine.merge.catalog import SPECS
from trine.merge.config import ModelPath, ModelReference
from trine.merge.dtypes import STORED
from trine.merge.engine import Options, merge
from trine.merge.jobs import Job, Plan, Tensor
from trine.merge.models import Model
from trine.merge.reading import Recipe
from trine.progress import Progress
from trine.weights.index import read_index


def copy_of(
    model: ModelReference, opened: Model, source: str, name: str, stored: str | None = None, **each: float | None
) -> Job:
    """The job that writes a model's tensor under a name, in another type, or with a `scale` or `noise`."""
    info = opened.tensors[source]
    tensor = Tensor(model, source, info)
    if info.dtype not in STORED:
        return Job(name, "copy", info.shape, info.dtype, info.dtype, (tensor,), None, (), {})
    kind = stored or info.dtype
    return Job(name, "passthrough", info.shape, kind, info.dtype, (tensor,), None, (each,), {})


def plan_of_copies(
    base: ModelReference,
    models: dict[ModelReference, Model],
    verb: str,
    title: str,
    config: dict[str, Any],
    text: str,
    resolved: Any,
) -> Plan:
    """A plan without jobs yet, whose config.json is `config`; `text` and `resolved` are the recipe of `trine VERB`."""
    recipe = Recipe(
        method="passthrough",
        spec=SPECS["passthrough"],
        modules={},
        base=base,
        dtype=None,
        out_dtype=None,
        tokenizer=None,
        chat_template=None,
        notes=(),
        resolved=resolved,
        text=text,
    )
    return Plan(recipe, models, base, verb=verb, title=title, config=config)


def made_folder(out: Path) -> Path:
    """Where computed tensors wait until `out` is there."""
    return out.with_name(f".{out.name}.made")


def stamp_of(resolved: Any, models: Mapping[ModelReference, Model]) -> str:
    """A digest of a recipe and of the sizes and times of its models' files."""
    files = sorted({info.file for model in models.values() for info in model.tensors.values()})
    return digest_of([resolved, [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]])


def computed(
    out: Path, resolved: Any, models: Mapping[ModelReference, Model], make: Callable[[Path], None]
) -> tuple[ModelReference, Model]:
    """The computed tensors of a build as a model: from an earlier call with the same recipe and inputs, or made now.

    `make` writes `model.safetensors` into the folder it is given.
    """
    if out.exists():
        raise BadInput(f"{out}: already exists; name another folder, or remove it first")
    folder = made_folder(out)
    stamp = stamp_of(resolved, models)
    if folder.exists() and not _made_from(folder, stamp):
        shutil.rmtree(folder)
    if not folder.exists():
        with publish(folder, "computed", {"from": stamp}) as temporary:
            make(temporary)
    return ModelReference(model=ModelPath(path=str(folder))), Model(folder, read_index(folder))


def _made_from(folder: Path, stamp: str) -> bool:
    return (folder / MANIFEST).is_file() and read_manifest(folder)["meta"].get("from") == stamp


def build(plan: Plan, out: Path, options: Options, progress: Progress) -> dict[str, Any]:
    """Carry out a plan of copies into the new folder `out`; the manifest's record."""
    plan.computed = made_folder(out)
    record = merge(plan, out, options, progress)
    shutil.rmtree(made_folder(out), ignore_errors=True)
    return record
