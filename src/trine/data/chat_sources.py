"""Files in, conversations out: JSONL, JSON and Parquet, as they are or in gzip or Zstandard.

A record that is no usable conversation comes out as a `BadRecord` with its place and the reason, and the rest of the
file is read on. A file in which nothing is usable, or that cannot be read, is a `BadFile`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from trine.data.config import ChatConfig, SourceConfig
from trine.data.conversations import NotAConversation, Shape, as_json, as_text, shape_of
from trine.data.document import BadRecord, Document
from trine.data.sources import (
    BATCH_ROWS,
    JSONL,
    LINE_BYTES,
    PARQUET,
    BadFile,
    endings_of,
    inspect,
    numbered_lines,
    open_packed,
    reading,
)

_NAMES = "name the keys with `chat` (conversation, or question and answer)"


def read_conversations(source: SourceConfig, path: Path) -> Iterator[Document | BadRecord]:
    """Every record of one file, in order. Raises BadFile."""
    assert source.chat is not None
    kind = inspect(path, endings_of(source))
    shape, bad, good = None, list[BadRecord](), False
    with reading(path):
        for where, record in _records(path, kind):
            if isinstance(record, NotAConversation):
                one = BadRecord(where, str(record))
            else:
                shape = shape or _shape(record, source.chat, where)
                one = _conversation(shape, record, where)
            good = good or isinstance(one, Document)
            if not good and isinstance(one, BadRecord):
                bad.append(one)
                continue
            yield from bad
            bad.clear()
            yield one
    if bad:
        raise BadFile(f"{bad[0].path}: {bad[0].reason}; none of the {len(bad)} records is a conversation; {_NAMES}")
    if not good:
        raise BadFile(f"{path}: holds no record")


def _shape(record: Any, config: ChatConfig, where: str) -> Shape | None:
    """The file's shape by its first object; None, to be asked again, for a record that is none."""
    if not isinstance(record, dict):
        return None
    shape = shape_of(record, config)
    if shape is None:
        keys = ", ".join(list(record)[:8]) or "none"
        raise BadFile(f"{where}: no known conversation (keys: {keys}); {_NAMES}")
    return shape


def _conversation(shape: Shape | None, record: Any, where: str) -> Document | BadRecord:
    if shape is None:
        return BadRecord(where, f"is a JSON {type(record).__name__}, expected an object")
    try:
        messages = shape.messages(record)
    except NotAConversation as error:
        return BadRecord(where, str(error))
    return Document(as_text(messages), where, as_json(messages))


def _records(path: Path, kind: tuple[str, str]) -> Iterator[tuple[str, Any]]:
    """(place, record) of a file of that format and compression; a NotAConversation where a line is no JSON."""
    ending, packed = kind
    if ending in PARQUET:
        yield from _rows(path)
        return
    with open_packed(path, packed) as stream:
        yield from (_lines if ending in JSONL else _items)(path, stream)


def _lines(path: Path, stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    for number, line in numbered_lines(path, stream, LINE_BYTES):
        if line.strip():
            yield f"{path}:{number}", _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        return NotAConversation("is nested too deeply")
    except ValueError as error:
        return NotAConversation(f"not JSON ({error})")


def _items(path: Path, stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """The items of a .json file's one list, which is in memory as a whole."""
    try:
        value = json.loads(stream.read().decode("utf-8-sig"))
    except RecursionError:
        raise BadFile(f"{path}: is nested too deeply") from None
    except ValueError as error:
        raise BadFile(f"{path}: not JSON ({error}); one object per line goes into a .jsonl file") from None
    if not isinstance(value, list):
        raise BadFile(f"{path}: is a JSON {type(value).__name__}, expected a list of objects")
    for i, record in enumerate(value):
        yield f"{path}#{i}", record


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows as objects; what is null is left out, as a struct column has every key in every message."""
    row = 0
    for batch in pq.ParquetFile(path).iter_batches(BATCH_ROWS):
        for record in batch.to_pylist():
            yield f"{path}#{row}", _without_nulls(record)
            row += 1


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
