"""A merge config of several documents: each is a merge, and may take the results of others by their `name`.

Named results go into one folder; a document without a name is the last merge, of which there is at most one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

from trine.config.yaml import parse_yaml
from trine.errors import BadInput
from trine.manifest import MANIFEST, read_manifest
from trine.merge.config import ModelReference
from trine.merge.models import checksums_in

_MARKER = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_REFERENCES = ("model", "base_model", "path", "tokenizer_source", "source")
"""Keys whose values may be models."""
_WORDS = ("union", "base")


@dataclass(frozen=True)
class Document:
    """One merge of a config."""

    name: str | None
    text: str
    """As it is in the file, other documents being blank lines, so that lines keep their numbers; without its name."""
    values: dict[str, Any]
    out: Path
    needs: tuple[str, ...]
    """Names of the documents whose results it takes."""


def is_several(path: Path) -> bool:
    """Whether a config holds several documents, or one with a name."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return False  # said by whoever reads it as one document
    return len(list(_split(text))) > 1 or bool(re.search(r"^name\s*:", text, re.MULTILINE))


def read_documents(path: Path, out: Path, parts: Path | None = None) -> list[Document]:
    """The documents in the order in which they can be merged: named ones into `parts`, the one without name into `out`.

    `parts` is `out` itself where every document has a name, else OUT.parts, when it is not given. Raises BadInput for
    names that are no names or given twice, two documents without name, and documents that need each other.
    """
    read = [_read(path, text) for text in _split(path.read_text(encoding="utf-8-sig"))]
    names = [name for name, _, _ in read]
    for name in names:
        if names.count(name) > 1:
            what = f"two documents are named '{name}'" if name else "two documents have no name, only one may"
            raise BadInput(f"{path}: {what}")
    parts = parts or (out.with_name(f"{out.name}.parts") if None in names else out)
    known = {name: parts / name for name in names if name is not None}
    found = {}
    for name, text, values in read:
        needs: dict[str, None] = {}
        patched = _patched(values, known, needs)
        found[name] = Document(name, text, patched, known.get(name or "", out), tuple(needs))
    try:
        order = list(TopologicalSorter({name: one.needs for name, one in found.items()}).static_order())
    except CycleError as error:
        raise BadInput(f"{path}: {' needs '.join(reversed(error.args[1]))}: documents that need each other") from None
    return [found[name] for name in order]


def _split(text: str) -> Iterator[str]:
    """Each document's text behind as many blank lines as lines are before it."""
    bounds = [0, *(found.start() for found in _MARKER.finditer(text)), len(text)]
    for start, end in pairwise(bounds):
        piece = _MARKER.sub("   ", text[start:end])
        if any(line.strip() and not line.lstrip().startswith("#") for line in piece.splitlines()):
            yield "\n" * text.count("\n", 0, start) + piece


def _read(path: Path, text: str) -> tuple[str | None, str, dict[str, Any]]:
    document = parse_yaml(text.encode(), str(path))
    values = dict(document.values)
    if "name" not in values:
        return None, text, values
    name, number = values.pop("name"), document.lines[("name",)]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadInput(f"{path}:{number}: name: got '{name}', expected letters, digits, '.', '-' and '_'")
    lines = text.split("\n")
    if not re.match(r"\s*name\s*:", lines[number - 1]):
        raise BadInput(f"{path}:{number}: name: expected on a line of its own")
    lines[number - 1] = ""
    return name, "\n".join(lines), values


def _patched(value: Any, known: dict[str, Path], needs: dict[str, None], key: str = "") -> Any:
    """The values with folders in place of names; the names go into `needs`."""
    if isinstance(value, dict):
        return {name: _patched(one, known, needs, str(name)) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_patched(one, known, needs, key) for one in value]
    if not isinstance(value, str) or key not in _REFERENCES or (key not in _REFERENCES[:3] and value in _WORDS):
        return value
    name = re.split(r"[@+]", value)[0]
    if name not in known:
        return value
    needs[name] = None
    folder = str(known[name])
    if key == "path" or not re.search(r"[@+]", folder):
        return folder + value[len(name) :]
    reference = ModelReference.model_validate(value).model_dump(exclude_none=True)
    return reference | {"model": reference["model"] | {"path": folder}}


def recipe_text(document: Document) -> str:
    """The document as a config of its own, with folders in place of names."""
    return json.dumps(document.values, indent=1, ensure_ascii=False) + "\n"


def complete(document: Document, settings: dict[str, Any], parts: Sequence[Path]) -> bool:
    """Whether a document's result is there, of the same recipe, `settings` and inputs.

    Raises BadInput when something else is there, or an input changed since. `parts`: results of other documents, whose
    hashes must be those that were merged; any other input must not be newer than the result.
    """
    out = document.out
    if not out.exists():
        return False
    where = f"{out}: already exists and is"
    if not (out / MANIFEST).is_file():
        raise BadInput(f"{where} no finished merge; remove it, or name another folder")
    meta = read_manifest(out)["meta"]
    if meta.get("config") != recipe_text(document) or any(meta.get(key) != one for key, one in settings.items()):
        raise BadInput(f"{where} the result of another recipe; remove it, or name another folder")
    sums = {part: checksums_in(part) for part in parts}
    for file, sha256 in meta["inputs"].items():
        path = Path(file)
        if path.parent in sums:
            same = sums[path.parent].get(path.name) == sha256
        else:
            same = path.is_file() and path.stat().st_mtime_ns <= (out / MANIFEST).stat().st_mtime_ns
        if not same:
            raise BadInput(f"{where} merged from another '{file}'; remove it, or name another folder")
    return True
