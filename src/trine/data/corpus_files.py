"""What a corpus folder is made of: Parquet by set, lists of what was refused, and the documents dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trine.data.config import COLUMNS
from trine.data.document import BadRecord, Document

_GROUP_BYTES = 64 << 20
_FILE_BYTES = 1 << 30
_DROPPED_BYTES = 16 << 20
_SHOWN = 20
_DROPPED = pa.schema([(name, pa.string()) for name in ("source", "path", "reason", "detail", "text")])


class SetWriter:
    """Parquet files of one set; `fields` are columns beside those of every corpus."""

    def __init__(self, folder: Path, name: str, fields: tuple[str, ...] = ()) -> None:
        self.folder, self.name, self.fields = folder, name, fields
        self.schema = pa.schema([(name, pa.string()) for name in (*COLUMNS, *fields)])
        self.rows: list[tuple[str | None, ...]] = []
        self.pending = self.in_file = self.files = self.documents = self.bytes = 0
        self.file: pq.ParquetWriter | None = None

    def add(self, document: Document, source: str) -> int:
        """Append; returns the text's bytes."""
        size = len(document.text.encode())
        kept = (document.fields.get(name) for name in self.fields)
        self.rows.append((document.text, source, document.path, document.messages, *kept))
        self.pending += size
        self.documents += 1
        self.bytes += size
        if self.pending >= _GROUP_BYTES:
            self._flush()
        return size

    def close(self) -> dict[str, int]:
        """Write what is left; the set's counts."""
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
            self.file = pq.ParquetWriter(path, self.schema, compression="zstd")
            self.in_file, self.files = 0, self.files + 1
        self.file.write_table(_table(self.rows, self.schema))
        self.in_file += self.pending
        self.rows, self.pending = [], 0


class DroppedFile:
    """`dropped.parquet`: every document that was dropped, with its text; there when there is one."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "dropped.parquet"
        self._file: pq.ParquetWriter | None = None
        self._rows: list[tuple[str, ...]] = []
        self._pending = 0

    def add(self, source: str, path: str, reason: str, detail: str, text: str) -> None:
        """Write down one document."""
        self._rows.append((source, path, reason, detail, text))
        self._pending += len(text)
        if self._pending >= _DROPPED_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._rows:
            self._flush()
        if self._file is not None:
            self._file.close()

    def _flush(self) -> None:
        if self._file is None:
            self._file = pq.ParquetWriter(self._path, _DROPPED, compression="zstd")
        self._file.write_table(_table(self._rows, _DROPPED))
        self._rows, self._pending = [], 0


class Rejected:
    """Records that were refused: all of them in `NAME.jsonl`, which is there when there is one, and a few shown."""

    def __init__(self, folder: Path, name: str = "rejected") -> None:
        self._name, self._path, self._file = name, folder / f"{name}.jsonl", None
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
        return {self._name: {"records": self.count, "first": self._shown}} if self.count else {}


def _table(rows: list[Any], schema: pa.Schema) -> pa.Table:
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    return pa.Table.from_arrays(columns, schema=schema)
