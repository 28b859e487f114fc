"""Plans of copies: output tensors that are tensors of other models, or computed ones that wait in a file beside OUT.

The merge engine carries them out. What is computed is published in `.OUT.made` first and kept until OUT is there, so
that a killed build goes on with the same bytes.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from trine.errors import BadInput
from trine.manifest import MANIFEST, digest_of, publish, read_manifest, write_file
from trine.merge.catalog import SPECS
from trine.merge.config import ModelPath, ModelReference
from trine.merge.dtypes import STORED
from trine.merge.engine import Options, merge
from trine.merge.models import Model
from trine.merge.plan import Job, Plan
from trine.merge.plan import Tensor as Input
from trine.merge.reading import Recipe
from trine.progress import Progress
from trine.weights.index import read_index


def copy_of(
    model: ModelReference, opened: Model, source: str, name: str, stored: str | None = None, **each: float | None
) -> Job:
    """The job that writes a model's tensor under a name, in another type, or with a `scale` or `noise`."""
    info = opened.tensors[source]
    tensor = Input(model, source, info)
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


class Pieces:
    """Parts of a long computation, kept beside `out` as they are done, so that a killed one goes on."""

    def __init__(self, out: Path, stamp: str) -> None:
        """`stamp`: what they are computed from; those of another stamp are dropped."""
        self.folder = out.with_name(f".{out.name}.pieces")
        head = self.folder / "from"
        if self.folder.exists() and not (head.is_file() and head.read_text() == stamp):
            shutil.rmtree(self.folder)
        self._head, self._stamp = head, stamp

    def get(self, name: str, make: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The tensors that `make` returned when it was called for this name; a damaged piece is made again."""
        path = self.folder / name
        if path.is_file():
            check, data = path.read_bytes()[:4], path.read_bytes()[4:]
            if check == zlib.crc32(data).to_bytes(4, "big"):
                found = load(data)
                return found["0"], found["1"]
        made = make()
        if not self._head.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self._head, self._stamp)
        data = save({str(i): one.contiguous() for i, one in enumerate(made)})
        write_file(path, zlib.crc32(data).to_bytes(4, "big") + data)
        return made

    def remove(self) -> None:
        """Drop all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)


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
