"""From files to tables: rows, bounds, broken inputs beside sound ones, and outputs that are whole or absent."""

from __future__ import annotations

import gzip
import hashlib
import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faults_edgar import check
from hostile_filings import DOCUMENTS, MAIN, attachment, hostile, page, submission

from trine.cli.main import main
from trine.data.edgar.cover import read_cover
from trine.data.edgar.parse import DOCUMENTS as COLUMNS
from trine.data.edgar.parse import ITEMS, list_inputs, parse_filings
from trine.data.edgar.structured import xml_lines
from trine.errors import BadInput

SLOW = {"a table of 20 MB", "gzip bomb", "zip bomb attached", "deep blocks", "attributes", "deep inline tags"}


def rows(path: Path) -> list[dict[str, object]]:
    return pq.read_table(path).to_pylist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A submission, the same in gzip below a folder, a bare document, a broken one, and something else."""
    place = tmp_path / "filings"
    (place / "below").mkdir(parents=True)
    text = submission(MAIN.format(""), after=attachment("EX-10.1", "<p>Item 1. An exhibit's text</p>"))
    (place / "a.txt").write_text(text)
    (place / "below/b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (place / "c.htm").write_bytes(page(""))
    (place / "d.txt").write_bytes(b"")
    (place / "e.json").write_text("{}")
    (place / ".hidden.txt").write_text("x")
    return place


def test_tables_of_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "items.parquet"
    record = parse_filings([folder], out, workers=2, explain=True)
    assert {name: record[name] for name in ("inputs", "parsed", "quarantined", "not_filings")} == {
        "inputs": 4,
        "parsed": 3,
        "quarantined": 1,
        "not_filings": 1,
    }
    assert pq.read_schema(out).equals(ITEMS)
    documents = out.with_name("documents.parquet")
    assert pq.read_schema(documents).equals(COLUMNS)
    listed = rows(documents)
    assert [(Path(str(row["source_path"])).name, row["status"]) for row in listed] == [
        ("a.txt", "parsed"),
        ("c.htm", "parsed"),
        ("d.txt", "quarantined"),
        ("b.txt.gz", "parsed"),
    ]
    assert listed[2]["reason"] == "is empty"
    assert "Item 7" in str(listed[0]["reason"]), "an item that is absent is said to be"
    items = rows(out)
    named = [one for one in items if str(one["source_path"]).endswith("c.htm") and one["item"]]
    assert [(one["part"], one["item"]) for one in named] == [("I", "1"), ("I", "1A"), ("I", "2")]
    by_file = {name: [one for one in items if str(one["source_path"]).endswith(name)] for name in ("a.txt", "b.txt.gz")}
    plain = [{**one, "source_path": ""} for one in by_file["a.txt"]]
    assert plain == [{**one, "source_path": ""} for one in by_file["b.txt.gz"]], "gzip changes nothing"
    data = (folder / "a.txt").read_bytes()
    for one in by_file["a.txt"]:
        assert (one["accession"], one["cik"], one["company"]) == ("0000000001-24-000001", "0000000001", "HOSTILE INC")
        assert (one["form"], one["period"], one["filed"]) == ("10-K", "2023-12-31", "2024-01-02")
        assert one["sha256"] == hashlib.sha256(data).hexdigest()
        assert "exhibit" not in str(one["text"])
        begin, end = one["byte_start"], one["byte_end"]
        assert isinstance(begin, int)
        assert isinstance(end, int)
        assert data.index(b"<html>") <= begin < end <= data.index(b"</html>") + 7
    assert any("1,234" in str(one["text"]) for one in by_file["a.txt"])


def test_outputs_are_whole_or_absent(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "items.parquet"
    (tmp_path / "documents.parquet").write_text("mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="already exists"):
        parse_filings([folder], out)
    assert not out.exists()
    with pytest.raises(BadInput, match="taken by the table"):
        parse_filings([folder], tmp_path / "x" / "documents.parquet")
    with pytest.raises(BadInput, match="no filing in it"):
        parse_filings([tmp_path / "empty"], tmp_path / "z" / "items.parquet")
    for words in (["nowhere.txt"], [str(folder), "--workers", "0"], []):
        assert main(["edgar", "parse", *words, "--out", str(tmp_path / "y" / "items.parquet")]) == 2
    assert not (tmp_path / "y").exists()


PATCH = """
import time
import trine.data.edgar.document as document

sound = document.parse_document

def parse_document(data, form):
    if b"SPIN" in data:
        while True:
            pass
    if b"DIE" in data:
        import os
        os.kill(os.getpid(), 11)
    if b"EAT" in data:
        return [bytes(1 << 28) for _ in range(40)]
    if b"RAISE" in data:
        raise RuntimeError("a fault of the parser")
    return sound(data, form)

document.parse_document = parse_document

import trine.data.edgar.worker as worker

worker.SECONDS_PER_MB = 0.5
"""


def test_what_a_parser_may_do_wrong_costs_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch/sitecustomize.py").write_text(PATCH)
    source = str(Path(__file__).resolve().parents[3] / "src")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'patch'}:{source}")
    place = tmp_path / "filings"
    place.mkdir()
    for name in ("a SPIN", "b sound", "c DIE", "d RAISE", "e EAT", "f sound"):
        (place / f"{name}.htm").write_bytes(page(name))
    began = time.monotonic()
    parse_filings([place], tmp_path / "items.parquet", workers=2)
    listed = [(row["status"], str(row["reason"])) for row in rows(tmp_path / "documents.parquet")]
    assert [status for status, _ in listed] == ["quarantined", "parsed", *["quarantined"] * 3, "parsed"]
    reasons = [why for _, why in listed]
    assert "more than two seconds of CPU time per MB" in reasons[0]
    assert "SIGSEGV" in reasons[2]
    assert reasons[3] == "RuntimeError: a fault of the parser"
    assert "memory" in reasons[4]
    assert time.monotonic() - began < 60


def test_hostile_documents_are_parsed_or_set_aside(tmp_path: Path) -> None:
    place = tmp_path / "filings"
    place.mkdir()
    for name, data in hostile():
        if name[3:].removesuffix(".txt") not in SLOW and len(data) < 150_000:
            (place / name).write_bytes(data)
    assert len(list(place.iterdir())) > 25
    parse_filings([place], tmp_path / "items.parquet")
    check(place, tmp_path / "items.parquet")
    assert not any("Wrong" in str(one["text"]) for one in rows(tmp_path / "items.parquet"))
    assert len(DOCUMENTS) == 60


def test_verb_prints_counts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "items.parquet"
    assert main(["edgar", "parse", str(folder / "c.htm"), "--out", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["inputs"], record["parsed"], record["quarantined"]) == (1, 1, 0)
    assert main(["edgar", "parse", str(folder / "c.htm"), "--out", str(out)]) == 2


def test_inputs_are_named_once_and_in_order(folder: Path) -> None:
    files, others = list_inputs([folder, folder / "a.txt", folder / "e.json"])
    assert [one.name for one in files] == ["a.txt", "c.htm", "d.txt", "b.txt.gz", "e.json"]
    assert others == 1


def test_cover_of_a_bare_document() -> None:
    facts = (
        "<ix:nonNumeric name='dei:DocumentType' id='a'>10-K</ix:nonNumeric>"
        '<ix:nonNumeric name="dei:DocumentPeriodEndDate"><ix:nonNumeric name="dei:x">December&#160;31'
        "</ix:nonNumeric>, 2024</ix:nonNumeric>"
        '<ix:nonNumeric name="dei:EntityRegistrantName"><b>A &amp; B\nInc.</b></ix:nonNumeric>'
        '<ix:nonNumeric name="dei:EntityCentralIndexKey">0000051143</ix:nonNumeric>'
    )
    read = read_cover(f"<html><body>{facts}</body></html>".encode(), "x/0000051143-24-000001.htm")
    assert (read.accession, read.form, read.period) == ("0000051143-24-000001", "10-K", "2024-12-31")
    assert (read.company.cik, read.company.name) == ("0000051143", "A & B Inc.")
    text = (
        "FORM 10-Q/A\n\nFor the quarterly period ended March 31, 1997\n\n     ACME WIDGETS,\n INC.\n"
        "(Exact name of registrant as specified in its charter)\n"
    )
    read = read_cover(text.replace(",\n INC.", ", INC.").encode(), "q.txt")
    assert (read.form, read.period, read.company.name) == ("10-Q/A", "1997-03-31", "ACME WIDGETS, INC.")
    assert read_cover(b"nothing", "a.txt").form == ""


def test_xml_entities_are_neither_grown_nor_loaded(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    lines, why = xml_lines(b'<?xml version="1.0"?><a xmlns="urn:x"><b> 1 <c>2</c>  3</b><d/></a>')
    assert (lines, why) == (["c: 2", "b: 1 3"], None)
    outside = f'<!DOCTYPE x [<!ENTITY f SYSTEM "file://{tmp_path}/secret">]><x><z>3</z><y>1 &f; 2</y></x>'
    lines, why = xml_lines(outside.encode())
    assert "z: 3" in lines
    assert "secret" not in " ".join(lines)
    began = time.process_time()
    lines, why = xml_lines(DOCUMENTS["entity bomb"]().partition(b"<XML>\n")[2].partition(b"\n</XML>")[0])
    assert why is not None
    assert sum(map(len, lines)) < 10_000_000
    assert time.process_time() - began < 2
