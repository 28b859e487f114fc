"""Every format in, and every kind of bad file named with the place and nothing written."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from trine.data.config import CorpusConfig, SourceConfig
from trine.data.corpus import build_corpus, read_rows
from trine.errors import BadInput

TEXT = "One line.\nAnother, with ünïcode — and 日本語.\n"


def texts_of(source: Path, out: Path, **options: Any) -> list[str]:
    build_corpus(CorpusConfig(sources=(SourceConfig(name="s", path=str(source), **options),)), out)
    return [row["text"] for rows in read_rows(out, "train") for row in rows]


def jsonl(*records: Any) -> bytes:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records).encode()


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_every_format_gives_the_same_text(tmp_path: Path) -> None:
    data = TEXT.encode()
    record = jsonl({"text": TEXT})
    files = {
        "a.txt": data,
        "b.md": data,
        "c.txt.gz": gzip.compress(data),
        "d.txt.zst": zstandard.compress(data),
        "e.jsonl": record,
        "f.jsonl.gz": gzip.compress(record[:5]) + gzip.compress(record[5:]),
        "g.jsonl.zst": zstandard.compress(record[:9]) + zstandard.compress(record[9:]),
        "h.txt": b"\xef\xbb\xbf" + data,
        "i.txt": data.replace(b"\n", b"\r\n"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert texts_of(tmp_path / name, tmp_path / f"out-{name}") == [TEXT], name
    parquet(tmp_path / "j.parquet", text=[TEXT])
    assert texts_of(tmp_path / "j.parquet", tmp_path / "out-j") == [TEXT]
    glob = tmp_path / "[a-d].*"
    ledger = build_corpus(CorpusConfig(sources=(SourceConfig(name="s", path=str(glob)),)), tmp_path / "globbed")
    assert ledger["sources"][0] | {"path": ""} == ledger["sources"][0] | {"files": 4, "documents": 1, "path": ""}
    assert ledger["sources"][0]["dropped"] == {"exact duplicate": 3}


def test_lines_fields_and_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("one\n\ntwo\n")
    (folder / "deep" / "b.txt").write_text("three\n")
    (folder / "deep" / "skip.txt").write_text("no\n")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    (folder / ".hidden.txt").write_text("no\n")
    found = texts_of(folder, tmp_path / "o1", documents="line", exclude=("skip*",))
    assert found == ["one", "two", "three"]
    assert texts_of(folder, tmp_path / "o2", include=("deep/*",), exclude=("skip*",)) == ["three\n"]
    (tmp_path / "c.jsonl").write_bytes(jsonl({"body": "x"}, {"body": "y"}))
    assert texts_of(tmp_path / "c.jsonl", tmp_path / "o3", text_field="body") == ["x", "y"]


Maker = Callable[[Path], Path]


def file(name: str, content: bytes) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def damaged(name: str, content: bytes, place: int) -> Maker:
    data = bytearray(content)
    data[place] ^= 0xFF
    return file(name, bytes(data))


def made_parquet(**columns: Any) -> Maker:
    return lambda folder: parquet(folder / "a.parquet", **columns)


def cut_parquet(folder: Path) -> Path:
    path = parquet(folder / "a.parquet", text=["x" * 100] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "a.txt")
    return folder / "a.txt"


def broken_link(folder: Path) -> Path:
    (folder / "a.txt").symlink_to(folder / "gone.txt")
    return folder / "a.txt"


def empty_folder(folder: Path) -> Path:
    (folder / "in").mkdir()
    return folder / "in"


def other_files(folder: Path) -> Path:
    (folder / "in").mkdir()
    (folder / "in" / "a.pdf").write_bytes(b"%PDF")
    return folder / "in"


GZ = gzip.compress(os.urandom(5000).hex().encode())
ZST = zstandard.compress(os.urandom(5000).hex().encode())
BAD: dict[str, tuple[Maker, str]] = {
    "empty file": (file("a.txt", b""), "is empty"),
    "only white space": (file("a.txt", b"\n \n"), "holds no text"),
    "empty gz": (file("a.txt.gz", gzip.compress(b"")), "holds no text"),
    "binary": (file("a.txt", b"MZ\0\0\x01\x02"), "NUL byte"),
    "not UTF-8": (file("a.txt", b"fine\nbad \xff\xfe\n"), r"a\.txt:2: byte 0xff is not UTF-8"),
    "UTF-16": (file("a.txt", "text".encode("utf-16")), "UTF-16"),
    "cut character": (file("a.txt", "naïve é".encode()[:-1]), r"a\.txt:1"),
    "gz that is not": (file("a.txt.gz", b"plain text"), "does not begin as a .gz"),
    "gz cut": (file("a.txt.gz", GZ[:-900]), "damaged or cut"),
    "gz flipped": (damaged("a.txt.gz", GZ, len(GZ) - 6), "damaged or cut"),
    "zst cut": (file("a.txt.zst", ZST[:-900]), "damaged or cut"),
    "zst that is not": (file("a.jsonl.zst", b"{}"), "does not begin as a .zst"),
    "broken JSONL line": (file("a.jsonl", b'{"text": "a"}\n{"text": \n'), r"a\.jsonl:2: not a JSON object"),
    "JSON array": (file("a.jsonl", b'["text"]\n'), r"a\.jsonl:1: is a JSON list"),
    "no field": (file("a.jsonl", b'{"body": "x"}\n'), r"no key 'text' \(keys: body\)"),
    "field of another type": (file("a.jsonl", b'{"text": 5}\n'), "'text' is int, expected text"),
    "null field": (file("a.jsonl", b'{"text": null}\n'), "'text' is NoneType"),
    "half a surrogate": (file("a.jsonl", b'{"text": "\\ud800"}\n'), "surrogate"),
    "nested JSON": (file("a.jsonl", b"[" * 100_000 + b"\n"), "nested too deeply"),
    "parquet that is not": (file("a.parquet", b"not parquet"), "does not begin as a .parquet"),
    "parquet cut": (cut_parquet, "cannot be read"),
    "parquet wrong dtype": (made_parquet(text=[1, 2]), "column 'text' is int64, expected string"),
    "parquet no column": (made_parquet(body=["x"]), r"no column 'text' \(columns: body\)"),
    "parquet null": (made_parquet(text=["x", None]), "#1: 'text' is null"),
    "parquet no rows": (made_parquet(text=pa.array([], pa.string())), "holds no row"),
    "unknown ending": (file("a.pdf", b"%PDF"), "ends in '.pdf'"),
    "fifo": (fifo, "not a regular file"),
    "broken link": (broken_link, "a broken link"),
    "absent": (lambda folder: folder / "absent.txt", "no such file"),
    "glob without match": (lambda folder: folder / "*.txt", "matches no file"),
    "empty folder": (empty_folder, "it is empty"),
    "folder of other files": (other_files, "such as a.pdf"),
}


@pytest.mark.parametrize(("make", "said"), BAD.values(), ids=BAD)
def test_bad_input_is_named_and_nothing_written(tmp_path: Path, make: Maker, said: str) -> None:
    path, out = make(tmp_path), tmp_path / "out" / "corpus"
    with pytest.raises(BadInput, match=said) as caught:
        texts_of(path, out)
    assert str(path.name) in str(caught.value)
    assert not out.exists()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file_is_named(tmp_path: Path) -> None:
    path = file("a.txt", b"text")(tmp_path)
    path.chmod(0)
    with pytest.raises(BadInput, match="Permission denied"):
        texts_of(path, tmp_path / "out")


def test_a_file_the_system_cannot_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file("a.txt", b"text")(tmp_path)
    real = Path.open

    def refused(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(BadInput, match=r"a\.txt: cannot be read \(Permission denied\)"):
        texts_of(path, tmp_path / "out")


def test_several_bad_files_are_named_together(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.txt").write_text("text\n")
    (folder / "empty.txt").touch()
    (folder / "wrong.txt.gz").write_bytes(b"plain")
    with pytest.raises(BadInput, match=r"(?s)empty\.txt.*wrong\.txt\.gz.*bad_files skip"):
        texts_of(folder, tmp_path / "out")


def test_skipping_leaves_a_bad_file_out_whole_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.jsonl").write_bytes(jsonl({"text": "good"}))
    (folder / "bad.jsonl").write_bytes(jsonl({"text": "first of a bad file"}) + b"{")
    (folder / "empty.txt").touch()
    source = SourceConfig(name="s", path=str(folder))
    ledger = build_corpus(CorpusConfig(sources=(source,), bad_files="skip"), tmp_path / "out")
    assert [row["text"] for rows in read_rows(tmp_path / "out", "train") for row in rows] == ["good"]
    assert sorted(Path(one["path"]).name for one in ledger["skipped_files"]) == ["bad.jsonl", "empty.txt"]
    assert ledger["sources"][0]["files"] == 1
