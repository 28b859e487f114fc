"""Files in, documents out: plain text, JSONL and Parquet, as they are or in gzip or Zstandard.

Files stream: memory holds one document, or one Parquet batch. Everything wrong with a file is a `BadFile` that
names it and, where there is one, the line or row. A record that cannot be used, in a file that can be read on, comes
out as a `BadRecord`.
"""

from __future__ import annotations

import codecs
import fnmatch
import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from trine.data.clean import strip_gutenberg
from trine.data.config import SourceConfig
from trine.data.document import BadRecord, Document, why_no_text
from trine.errors import BadInput

TEXT, JSONL, PARQUET, JSON = (".txt", ".md"), (".jsonl",), (".parquet",), (".json",)
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".parquet": b"PAR1"}
LINE_BYTES = 1 << 28
_PIECE_BYTES = 1 << 20
BATCH_ROWS = 256
_BESIDE_FILINGS = ("documents.parquet", "manifest.json")
"""Written beside the items by `trine edgar parse`; they hold none."""


class BadFile(BadInput):
    """One file cannot be used."""


def list_files(source: SourceConfig) -> list[Path]:
    """The files of a source in the order of their names. Raises BadInput when there are none."""
    given = Path(source.path).expanduser()
    if given.is_dir():
        found = [Path(folder) / name for folder, _, names in os.walk(given, followlinks=False) for name in names]
        chosen = [p for p in found if _wanted(source, p.relative_to(given)) and not p.name.startswith(".")]
        files = [p for p in chosen if kind_of(p, endings_of(source))]
        if source.filings is not None:
            files = [p for p in files if p.name not in _BESIDE_FILINGS]
        if not files:
            held = (
                f"; it holds {len(found)} other files, such as {sorted(found)[0].name}" if found else " (it is empty)"
            )
            *first, last = endings_of(source)
            kinds = f"{', '.join(first)} or {last}"
            raise BadInput(f"{given}: source '{source.name}' has no {kinds} file in it{held}")
    elif given.exists() or given.is_symlink():
        files = [given]
    elif glob.has_magic(source.path):
        files = [Path(p) for p in glob.glob(str(given), recursive=True) if not Path(p).is_dir()]
        files = [p for p in files if _wanted(source, Path(p.name))]
        if not files:
            raise BadInput(f"{source.path}: source '{source.name}': the pattern matches no file")
    else:
        raise BadInput(f"{given}: source '{source.name}': no such file or folder")
    return sorted(files, key=str)


def _wanted(source: SourceConfig, path: Path) -> bool:
    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatch(path.as_posix(), one) or fnmatch.fnmatch(path.name, one) for one in patterns)

    return matches(source.include) and not matches(source.exclude)


def endings_of(source: SourceConfig) -> tuple[str, ...]:
    """Endings of the files that hold what `source` asks for."""
    if source.filings is not None:
        return JSON + PARQUET
    return JSONL + JSON + PARQUET if source.chat is not None else TEXT + JSONL + PARQUET


def kind_of(path: Path, endings: tuple[str, ...]) -> tuple[str, str] | None:
    """(format ending, compression ending or ""), or None for an ending that is not one of `endings`."""
    packed = path.suffix.lower() if path.suffix.lower() in (".gz", ".zst") else ""
    ending = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    return (ending, packed) if ending in endings and not (packed and ending in PARQUET) else None


def inspect(path: Path, endings: tuple[str, ...]) -> tuple[str, str]:
    """What `kind_of` says. Raises BadFile for what can be seen to be wrong without reading the file through."""
    kind = kind_of(path, endings)
    if kind is None:
        kinds = " ".join(one for one in endings if one not in PARQUET)
        raise BadFile(f"{path}: ends in '{path.suffix}'; expected {kinds} (also .gz, .zst) or .parquet")
    try:
        if not path.is_file():
            what = "a broken link" if not path.exists() else "not a regular file"
            raise BadFile(f"{path}: is {what}")
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise BadFile(f"{path}: is empty")
    magic = _MAGIC.get(kind[1] or kind[0], b"")
    if not head.startswith(magic):
        raise BadFile(f"{path}: does not begin as a {kind[1] or kind[0]} file does; is it another format?")
    return kind


def read_documents(source: SourceConfig, path: Path) -> Iterator[Document | BadRecord]:
    """Every record of one file, in order. Raises BadFile."""
    ending, packed = inspect(path, endings_of(source))
    with reading(path):
        if ending in PARQUET:
            yield from _parquet(source, path)
            return
        with open_packed(path, packed) as stream:
            yield from (_jsonl if ending in JSONL else _text)(source, path, stream)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the libraries raise over a damaged file into BadFile."""
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError, zstandard.ZstdError) as error:
        raise BadFile(f"{path}: the compressed data is damaged or cut ({error})") from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        text = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise BadFile(f"{path}: cannot be read ({text})") from None


def open_packed(path: Path, packed: str) -> IO[bytes]:
    """The bytes of a file that is compressed as its ending `packed` says."""
    match packed:
        case ".gz":
            return io.BufferedReader(gzip.GzipFile(path))
        case ".zst":
            return io.BufferedReader(_WholeZstd(path))
    return path.open("rb")


class _WholeZstd(io.RawIOBase):
    """All frames of a .zst file; a frame that ends early is an error, as it is for gzip."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun, self._ready = False, b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), False
            data = data or self._file.read(_PIECE_BYTES)
            if not data and self._begun:
                raise EOFError("the last frame is not complete")
            if not data:
                return 0
            self._ready, self._begun = self._frame.decompress(data), True
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def numbered_lines(path: Path, stream: IO[bytes], limit: int) -> Iterator[tuple[int, str]]:
    """(line number, text with its line end); a line longer than `limit` bytes comes in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number, first = 1, True
    while raw := stream.readline(limit):
        if first and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise BadFile(f"{path}:1: is UTF-16; expected UTF-8 text")
        first = False
        try:
            text = decoder.decode(raw, final=raw.endswith(b"\n"))
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise BadFile(f"{path}:{number}: byte 0x{byte:02x} is not UTF-8; expected UTF-8 text") from None
        if "\0" in text:
            raise BadFile(f"{path}:{number}: holds a NUL byte, so this is binary data; expected text")
        yield number, text.replace("\r\n", "\n")
        number += raw.endswith(b"\n")
    if decoder.getstate()[0]:
        raise BadFile(f"{path}:{number}: ends inside a character; expected UTF-8 text")


def _text(source: SourceConfig, path: Path, stream: IO[bytes]) -> Iterator[Document]:
    numbered = numbered_lines(path, stream, _PIECE_BYTES)
    found = False
    if source.documents == "line":
        for number, line in numbered:
            if line.strip():
                found = True
                yield Document(line.rstrip("\n"), f"{path}:{number}")
    else:
        lines = (line for _, line in numbered)
        if source.strip == "gutenberg":
            lines = strip_gutenberg(lines)
        for number, text in enumerate(_gathered(lines)):
            if text.strip():
                found = True
                yield Document(text.strip("\n") + "\n", f"{path}@part{number}" if number else str(path))
    if not found:
        raise BadFile(f"{path}: holds no text")


def _gathered(lines: Iterable[str]) -> Iterator[str]:
    """Lines joined to texts of at most about 64 MiB, so that no file is in memory whole."""
    pieces: list[str] = []
    size = 0
    for line in lines:
        pieces.append(line)
        size += len(line)
        if size >= 1 << 26:
            yield "".join(pieces)
            pieces, size = [], 0
    yield "".join(pieces)


def _jsonl(source: SourceConfig, path: Path, stream: IO[bytes]) -> Iterator[Document | BadRecord]:
    found, number = False, 0
    while raw := stream.readline(LINE_BYTES):
        number += 1
        if number == 1 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise BadFile(f"{path}:1: is UTF-16; expected UTF-8 text")
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if line.strip():
            found = True
            yield _line(source, line, f"{path}:{number}")
        while not raw.endswith(b"\n") and raw:
            raw = stream.readline(LINE_BYTES)
    if not found:
        raise BadFile(f"{path}: holds no line")


def _line(source: SourceConfig, line: bytes, where: str) -> Document | BadRecord:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return BadRecord(where, f"byte 0x{error.object[error.start]:02x} is not UTF-8; expected UTF-8 text")
    if "\0" in text:
        return BadRecord(where, "holds a NUL byte, so this is binary data; expected text")
    try:
        record = json.loads(text)
    except RecursionError:
        return BadRecord(where, "is nested too deeply")
    except ValueError as error:
        return BadRecord(where, f"not a JSON object ({error})")
    if not isinstance(record, dict):
        return BadRecord(where, f"is a JSON {type(record).__name__}, expected an object with '{source.text_field}'")
    if source.text_field not in record:
        keys = ", ".join(list(record)[:8]) or "none"
        return BadRecord(where, f"has no key '{source.text_field}' (keys: {keys}); set text_field")
    return document_of(record, where, source.text_field, source.kept)


def document_of(record: Mapping[str, Any], where: str, text_field: str, kept: Iterable[str]) -> Document | BadRecord:
    """The document that a record is, with the fields it keeps as text."""
    text = record[text_field]
    if not isinstance(text, str):
        return BadRecord(where, f"'{text_field}' is {type(text).__name__}, expected text")
    fields = {name: str(record[name]) for name in kept if record.get(name) is not None}
    for name, value in ((text_field, text), *fields.items()):
        if why := why_no_text(value):
            return BadRecord(where, f"'{name}' {why}")
    return Document(text, where, fields=fields)


def _parquet(source: SourceConfig, path: Path) -> Iterator[Document | BadRecord]:
    for where, row in parquet_rows(path, source.text_field, source.kept):
        if row[source.text_field] is None:
            yield BadRecord(where, f"'{source.text_field}' is null, expected text")
        else:
            yield document_of(row, where, source.text_field, source.kept)


def parquet_rows(path: Path, text_field: str, kept: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) with the text's column and those of `kept` that are there. Raises BadFile."""
    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    if text_field not in schema.names:
        names = ", ".join(schema.names[:12])
        raise BadFile(f"{path}: has no column '{text_field}' (columns: {names}); set text_field")
    kind = schema.field(text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise BadFile(f"{path}: column '{text_field}' is {kind}, expected string")
    if file.metadata.num_rows == 0:
        raise BadFile(f"{path}: holds no row")
    columns, row = [text_field, *(name for name in kept if name in schema.names)], 0
    for batch in file.iter_batches(BATCH_ROWS, columns=columns):
        for one in batch.to_pylist():
            yield f"{path}#{row}", one
            row += 1
