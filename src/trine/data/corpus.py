"""Sources in, a corpus out: deduplicated documents in Parquet, and the ledger of what was kept and dropped.

A corpus folder holds, for each set, `SET-0000i.parquet` with the columns `text`, `source`, `path`, `messages` (of
conversations alone), `ledger.json` and, where records of conversations were refused, `rejected.jsonl`. Documents
stream; memory holds a row group (at most about 64 MiB of text) per set and 16 bytes of hash per distinct document
(about 100 bytes in a Python set).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trine.data.chat_sources import read_conversations
from trine.data.config import CorpusConfig, SourceConfig
from trine.data.document import BadRecord, Document, cut
from trine.data.python_docs import python_docs
from trine.data.sources import BadFile, inspect, list_files, read_documents
from trine.errors import BadInput
from trine.manifest import publish, read_manifest
from trine.progress import Progress, silent

_SCHEMA = pa.schema([(name, pa.string()) for name in ("text", "source", "path", "messages")])
_GROUP_BYTES = 64 << 20
_FILE_BYTES = 1 << 30
_SHOWN = 20


def build_corpus(config: CorpusConfig, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Read every source, drop duplicates and publish the corpus folder `out`. Returns the ledger.

    Sets other than `train` are read first, so that a text held out is never trained on. Raises BadInput, with
    every file that is seen to be bad before reading, and writes nothing then.
    """
    ordered = sorted(config.sources, key=lambda source: source.set == "train")
    files, skipped = _usable_files(ordered, config)
    with publish(out, "corpus") as folder:
        building = _Building(config, folder, skipped)
        builtins = sum(source.path.startswith("builtin:") for source in ordered)
        total = builtins + sum(map(len, files.values()))
        done = 0
        for source in ordered:
            for path in files[source.name]:
                progress(done, total, f"corpus: files, {building.documents:,} documents")
                building.add_file(source, path)
                done += 1
            if source.path.startswith("builtin:"):
                building.add_documents(source, python_docs())
                done += 1
        progress(total, total, f"corpus: files, {building.documents:,} documents")
        ledger = building.close([source.name for source in config.sources])
        (folder / "ledger.json").write_text(json.dumps(ledger, indent=1, ensure_ascii=False) + "\n")
    return ledger


def _usable_files(
    sources: list[SourceConfig], config: CorpusConfig
) -> tuple[dict[str, list[Path]], list[dict[str, str]]]:
    """Files by source, after a look at each one's head; bad ones raise together, or are listed and left out."""
    files: dict[str, list[Path]] = {}
    bad: list[tuple[Path, str]] = []
    for source in sources:
        files[source.name] = []
        for path in [] if source.path.startswith("builtin:") else list_files(source):
            try:
                inspect(path, chat=source.chat is not None)
                files[source.name].append(path)
            except BadFile as error:
                bad.append((path, str(error)))
    if bad and config.bad_files == "stop":
        lines = [text for _, text in bad[:_SHOWN]]
        if len(bad) > _SHOWN:
            lines.append(f"... and {len(bad) - _SHOWN} more")
        raise BadInput("\n".join([*lines, _SKIP_HINT]))
    return files, [{"path": str(path), "reason": text} for path, text in bad]


_SKIP_HINT = "nothing was written; mend or remove it, or leave such files out with --corpus.bad_files skip"


class _Building:
    """A corpus in the making: writers by set, hashes seen, counts by source."""

    def __init__(self, config: CorpusConfig, folder: Path, skipped: list[dict[str, str]]) -> None:
        self.config, self.folder, self.skipped = config, folder, skipped
        self.writers: dict[str, _SetWriter] = {}
        self.seen: set[bytes] = set()
        self.entries = {source.name: _entry(source) for source in config.sources}
        self.hashes = {source.name: hashlib.sha256() for source in config.sources}
        self.dropped = {source.name: Counter[str]() for source in config.sources}
        self.rejected = Rejected(folder)
        self.documents = 0

    def add_file(self, source: SourceConfig, path: Path) -> None:
        read = read_conversations if source.chat is not None else read_documents
        try:
            if self.config.bad_files == "skip":
                for _ in read(source, path):
                    pass
            self.add_documents(source, read(source, path))
        except BadFile as error:
            if self.config.bad_files == "stop":
                raise BadInput(f"{error}\n{_SKIP_HINT}") from None
            self.skipped.append({"path": str(path), "reason": str(error)})
            return
        self.entries[source.name]["files"] += 1

    def add_documents(
        self, source: SourceConfig, documents: Iterator[Document] | Iterator[Document | BadRecord]
    ) -> None:
        for whole in documents:
            if isinstance(whole, BadRecord):
                self.entries[source.name]["documents_in"] += 1
                self.dropped[source.name]["no usable conversation"] += 1
                self.rejected.add(source.name, whole)
            elif whole.messages is not None:
                self._add(source, whole)
            else:
                for document in cut(whole, self.config.max_document_bytes):
                    self._add(source, document)

    def _add(self, source: SourceConfig, document: Document) -> None:
        entry = self.entries[source.name]
        entry["documents_in"] += 1
        digest = document.digest()
        if len(document.text.strip()) < self.config.min_characters:
            self.dropped[source.name]["shorter than min_characters"] += 1
            return
        if document.messages is not None and len(document.text.encode()) > self.config.max_document_bytes:
            self.dropped[source.name]["longer than max_document_bytes"] += 1
            return
        if self.config.dedup == "exact":
            if digest[:16] in self.seen:
                self.dropped[source.name]["exact duplicate"] += 1
                return
            self.seen.add(digest[:16])
        name = source.set
        if name == "train" and int.from_bytes(digest[-8:], "big") < self.config.heldout_fraction * 2**64:
            name = "heldout"
        if name not in self.writers:
            self.writers[name] = _SetWriter(self.folder, name)
        size = self.writers[name].add(document, source.name)
        self.hashes[source.name].update(digest)
        self.documents += 1
        entry["documents"] += 1
        entry["bytes"] += size

    def close(self, order: list[str]) -> dict[str, Any]:
        sets = {name: self.writers[name].close() for name in sorted(self.writers)}
        self.rejected.close()
        if "train" not in sets:
            raise BadInput("no training document is left; is every source held out, or every text too short?")
        for name, entry in self.entries.items():
            entry |= {"sha256": self.hashes[name].hexdigest(), "dropped": dict(self.dropped[name])}
        return {
            "sources": [self.entries[name] for name in order],
            "sets": sets,
            "skipped_files": self.skipped,
        } | self.rejected.entry()


class Rejected:
    """Records that were refused: all of them in `rejected.jsonl`, which is there when there is one, and a few shown."""

    def __init__(self, folder: Path) -> None:
        self._path, self._file = folder / "rejected.jsonl", None
        self._shown: list[dict[str, str]] = []
        self.count = 0

    def add(self, source: str, bad: BadRecord) -> None:
        """Write down that a record of `source` was refused."""
        line = {"source": source, "path": bad.path, "reason": bad.reason}
        if self._file is None:
            self._file = self._path.open("w")
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.count += 1
        if len(self._shown) < _SHOWN:
            self._shown.append(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def entry(self) -> dict[str, Any]:
        """The ledger's part: their number and the first of them."""
        return {"rejected": {"records": self.count, "first": self._shown}} if self.count else {}


def _entry(source: SourceConfig) -> dict[str, Any]:
    chat = {} if source.chat is None else {"conversations": True}
    return chat | {
        "name": source.name,
        "set": source.set,
        "path": source.path,
        "licence": source.licence,
        "files": 0,
        "documents_in": 0,
        "documents": 0,
        "bytes": 0,
    }


class _SetWriter:
    """Parquet files of one set."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.rows: list[tuple[str, str, str, str | None]] = []
        self.pending = self.in_file = self.files = self.documents = self.bytes = 0
        self.file: pq.ParquetWriter | None = None

    def add(self, document: Document, source: str) -> int:
        """Append; returns the text's bytes."""
        size = len(document.text.encode())
        self.rows.append((document.text, source, document.path, document.messages))
        self.pending += size
        self.documents += 1
        self.bytes += size
        if self.pending >= _GROUP_BYTES:
            self._flush()
        return size

    def close(self) -> dict[str, int]:
        self._flush()
        if self.file is not None:
            self.file.close()
        return {"documents": self.documents, "bytes": self.bytes}

    def _flush(self) -> None:
        if not self.rows:
            return
        if self.file is not None and self.in_file >= _FILE_BYTES:
            self.file.close()
            self.file = None
        if self.file is None:
            path = self.folder / f"{self.name}-{self.files:05}.parquet"
            self.file, self.in_file, self.files = (
                pq.ParquetWriter(path, _SCHEMA, compression="zstd"),
                0,
                self.files + 1,
            )
        columns = [pa.array(column, pa.string()) for column in zip(*self.rows, strict=True)]
        self.file.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA))
        self.in_file += self.pending
        self.rows, self.pending = [], 0


def read_ledger(corpus: Path) -> dict[str, Any]:
    """The ledger of a corpus folder. Raises BadInput for another folder."""
    read_manifest(corpus, "corpus")
    return json.loads((corpus / "ledger.json").read_text())


def read_rows(corpus: Path, name: str, batch_rows: int = 256) -> Iterator[list[dict[str, Any]]]:
    """Rows (`text`, `source`, `path`, and `messages` or None) of one set, in order, in batches."""
    for path in sorted(corpus.glob(f"{name}-{'[0-9]' * 5}.parquet")):
        try:
            for batch in pq.ParquetFile(path).iter_batches(batch_rows):
                yield batch.to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise BadInput(f"{path}: cannot be read ({str(error).splitlines()[0]}); build the corpus again") from None
