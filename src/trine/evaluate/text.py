"""Bits per byte of any text, by class of document: what a model needs for texts it has not seen.

Documents are items. Where there are few, each is cut at line ends into pieces of some 16 KiB that are items of their
own, so that an interval can be drawn; a piece is still read with what comes before it in its document.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trine.data.config import SourceConfig
from trine.data.document import BadRecord, Document, cut
from trine.data.sources import list_files, read_documents
from trine.errors import BadInput
from trine.evaluate.asking import Scorer
from trine.evaluate.items import Item, prompt_hash, stage
from trine.progress import Progress, silent

FEW, PIECE_BYTES = 30, 16384
_AT_ONCE = 1 << 20
"""Bytes of text whose tokens are in memory at one time, or one document."""


@dataclass(frozen=True)
class Text:
    """A document and its class."""

    id: str
    kind: str
    text: str


class TextTask:
    """The texts of a file or folder. The first of the sub-folders on a document's way is its class, or a field."""

    metric, higher_is_better = "bits_per_byte", False

    def __init__(
        self,
        name: str,
        path: Path,
        *,
        field: str = "text",
        kind: str | None = None,
        most_bytes: int | None = None,
        limit: int | None = None,
    ) -> None:
        """`field` names the text and `kind` the class in JSONL and Parquet; `most_bytes` bounds the text of a class,
        `limit` the items. Raises BadInput for a file that cannot be read."""
        self.name, self.path = name, path
        self.options = {"field": field, "class": kind, "bytes": most_bytes, "limit": limit}
        texts = _bounded(_texts(path, name, field, kind), most_bytes)
        pieces = PIECE_BYTES if len(texts) < FEW else None
        self.texts: list[tuple[Text, list[Document]]] = []
        left = limit
        for one in texts:
            if left is not None and left <= 0:
                break
            whole = Document(one.text, one.id)
            parts = list(cut(whole, pieces)) if pieces else [whole]
            parts = parts[:left]
            left = None if left is None else left - len(parts)
            self.texts.append((Text(one.id, one.kind, "".join(part.text for part in parts)), parts))

    def sizes(self) -> dict[str, int]:
        parts = sum(len(parts) for _, parts in self.texts)
        return {
            "items": parts,
            "requests": len(self.texts),
            "bytes": sum(len(one.text.encode()) for one, _ in self.texts),
        }

    def about(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for one, _ in self.texts:
            digest.update(f"{one.id}\0{one.kind}\0{one.text}\0".encode())
        return {"kind": "text", "documents": len(self.texts), "sha256": digest.hexdigest()} | self.options

    def run(self, scorer: Scorer, progress: Progress = silent) -> list[Item]:
        items: list[Item] = []
        done, total = 0, sum(len(one.text) for one, _ in self.texts)
        for group in _groups(self.texts):
            for (text, parts), one in zip(group, scorer.rolling([text.text for text, _ in group]), strict=True):
                items += _items(text, parts, one.logp, one.ends)
                done += len(text.text)
                progress(done, total, f"{stage(self.name)}: characters")
        return items


def _items(text: Text, parts: list[Document], logp: np.ndarray, ends: np.ndarray) -> list[Item]:
    """A token counts for the piece in which its last character lies."""
    bounds = np.cumsum([len(part.text) for part in parts])
    places = np.searchsorted(bounds, ends, side="left").clip(max=len(parts) - 1)
    items = []
    for number, part in enumerate(parts):
        loglik, size = float(logp[places == number].sum()), len(part.text.encode())
        bits = -loglik / math.log(2)
        items.append(Item(part.path, bits / size, size, text.kind, prompt_hash(part.text), bytes=size, loglik=loglik))
    return items


def _groups(texts: list[tuple[Text, list[Document]]]) -> Iterator[list[tuple[Text, list[Document]]]]:
    group: list[tuple[Text, list[Document]]] = []
    size = 0
    for one in texts:
        if group and size + len(one[0].text) > _AT_ONCE:
            yield group
            group, size = [], 0
        group.append(one)
        size += len(one[0].text)
    if group:
        yield group


def _texts(path: Path, name: str, field: str, kind: str | None) -> Iterator[Text]:
    """Every document below `path`; blank ones are left out."""
    source = SourceConfig(name="text", path=str(path), text_field=field)
    source = source.model_copy(update={"fields": (kind,) if kind else ()})
    try:
        files = list_files(source)
    except BadInput as error:
        raise BadInput(f"task '{name}': {error}") from None
    root = path if path.is_dir() else path.parent
    for file in files:
        place = file.relative_to(root)
        folder = place.parts[0] if len(place.parts) > 1 else ""
        for one in read_documents(source, file):
            if isinstance(one, BadRecord):
                raise BadInput(f"task '{name}': {one.path}: {one.reason}")
            if one.text.strip():
                group = one.fields.get(kind or "", folder)
                yield Text(str(Path(one.path).relative_to(root)), group, one.text)


def _bounded(texts: Iterator[Text], most: int | None) -> list[Text]:
    """The first texts of each class, up to `most` bytes in all, the last one cut at a line end."""
    kept: list[Text] = []
    sizes: dict[str, int] = {}
    for one in texts:
        left = None if most is None else most - sizes.get(one.kind, 0)
        if left is not None and left <= 0:
            continue
        text = one.text if left is None else next(cut(Document(one.text, one.id), left)).text
        sizes[one.kind] = sizes.get(one.kind, 0) + len(text.encode())
        kept.append(Text(one.id, one.kind, text))
    return kept
