"""Indexes in each of their layouts, the filters, industries from submissions JSON, and the verbs on a local server."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from edgar_server import filing, serving

from trine.cli.main import main
from trine.data.edgar.index import Wanted, build_index, quarters, read_index, read_paths, read_sics, wanted
from trine.errors import BadInput

AGENT = "Example Ltd data@example.com"
ROWS = [
    ("1000045", "NICHOLAS FINANCIAL INC", "10-Q", "2023-02-14", "edgar/data/1000045/0000950170-23-002704.txt"),
    ("1000045", "NICHOLAS FINANCIAL INC", "8-K", "2023-01-05", "edgar/data/1000045/0001000045-23-000001.txt"),
    ("320193", "Apple Inc.", "10-K", "2023-03-03", "edgar/data/320193/0000320193-23-000106.txt"),
    ("320193", "Apple Inc.", "10-K/A", "2023-03-31", "edgar/data/320193/0000320193-23-000107.txt"),
    ("99", "SOCIÉTÉ 10-K | HOLDINGS", "SC 13G/A", "2023-03-31", "edgar/data/99/0000320193-23-000106.txt"),
]
TOP = "Description:           Master Index of EDGAR Dissemination Feed\nLast Data Received:    March 31, 2023\n\n\n"


def master(rows: list[tuple[str, ...]] = ROWS) -> str:
    lines = ["|".join((cik, name.replace("|", "/"), *rest)) for cik, name, *rest in rows]
    return TOP + "CIK|Company Name|Form Type|Date Filed|Filename\n" + "-" * 80 + "\n" + "\n".join(lines) + "\n"


def form_index(rows: list[tuple[str, ...]] = ROWS) -> str:
    titles = f"{'Form Type':12}{'Company Name':62}{'CIK':12}{'Date Filed':12}File Name\n"
    lines = [f"{form:12}{name:62}{cik:12}{date:12}{path}" for cik, name, form, date, path in rows]
    return TOP + titles + "-" * 140 + "\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("layout", ["master", "form", "company"])
def test_every_layout_gives_the_same_rows(tmp_path: Path, layout: str) -> None:
    text = master() if layout == "master" else form_index()
    if layout == "company":
        text = TOP + f"{'Company Name':62}{'Form Type':12}{'CIK':12}{'Date Filed':12}File Name\n" + "-" * 140 + "\n"
        text += "".join(f"{name:62}{form:12}{cik:12}{date:12}{path}\n" for cik, name, form, date, path in ROWS)
    for name, data in (("plain.idx", text.encode("cp1252")), ("packed.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(data)
        rows = list(read_index(tmp_path / name, []))
        expected = [(cik.zfill(10), form, date, path) for cik, _, form, date, path in ROWS]
        assert [(row["cik"], row["form"], row["filed"], row["path"]) for row in rows] == expected
        assert rows[4]["company"].startswith("SOCIÉTÉ 10-K")
        assert rows[2]["accession"] == "0000320193-23-000106"


def test_filters_and_industries(tmp_path: Path) -> None:
    (tmp_path / "form.idx").write_text(form_index())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/CIK0000320193.json").write_text(json.dumps({"cik": "0000320193", "sic": "3571"}))
    (tmp_path / "sub/other.json").write_text("[]")
    sics = read_sics(tmp_path / "sub")

    def kept(want: Wanted) -> list[str]:
        out = tmp_path / "out.parquet"
        out.unlink(missing_ok=True)
        build_index([tmp_path / "form.idx"], out, want, sics)
        return pq.read_table(out).column("form").to_pylist()

    assert kept(wanted()) == ["10-Q", "8-K", "10-K", "10-K/A", "SC 13G/A"]
    assert kept(wanted(forms=["10-k"])) == ["10-K"]
    assert kept(wanted(ciks=["1000045"])) == ["10-Q", "8-K"]
    assert kept(wanted(since="2023-02-14", until="2023-03-03")) == ["10-Q", "10-K"]
    assert kept(wanted(sics=["3571"])) == ["10-K", "10-K/A"]
    assert kept(wanted(sics=["0100"])) == []


def test_a_filing_under_two_companies_is_fetched_once(tmp_path: Path) -> None:
    (tmp_path / "m.idx").write_text(master())
    build_index([tmp_path / "m.idx"], tmp_path / "m.parquet", Wanted())
    paths = read_paths(tmp_path / "m.parquet")
    assert len(paths) == 4
    assert sum("0000320193-23-000106" in path for path in paths) == 1


def test_bad_indexes_and_words_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    for name, text, why in (
        ("a.idx", "hello\n", "no line of dashes"),
        ("b.idx", master() + "not|a|row\n", "b.idx:12: is no row"),
        ("c.idx", "Some Titles\n" + "-" * 60 + "\n", "its titles are"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(BadInput, match=why):
            build_index([tmp_path / name], out, Wanted())
        assert sorted(p.name for p in tmp_path.glob("*out*")) == []
    (tmp_path / "d.idx").write_text(master(ROWS * 100) + "not|a|row\n")
    made = build_index([tmp_path / "d.idx"], out, Wanted())
    assert made["filings"] == 500
    assert "d.idx:507: is no row" in made["unread"][0]
    out.unlink()
    with pytest.raises(BadInput, match="--submissions"):
        build_index([], out, wanted(sics=["3571"]))
    for words in (
        {"ciks": ["x"]},
        {"sics": ["12345"]},
        {"since": "2023"},
        {"since": "2024-01-02", "until": "2024-01-01"},
    ):
        with pytest.raises(BadInput):
            wanted(**words)  # type: ignore[arg-type]
    assert quarters("2022Q4-2023Q2") == [(2022, 4), (2023, 1), (2023, 2)]
    assert quarters("master.idx") is None
    with pytest.raises(BadInput):
        quarters("2023Q2-2022Q1")


def test_the_verbs_from_a_quarter_to_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out, store = tmp_path / "q.parquet", tmp_path / "filings"
    with serving() as edgar:
        edgar.files["/Archives/edgar/full-index/2023/QTR1/master.idx"] = master().encode()
        for number, row in enumerate(ROWS):
            edgar.files[f"/Archives/{row[4]}"] = filing(number)
        host = ["--base-url", edgar.url, "--user-agent", AGENT]
        assert main(["edgar", "index", "2023Q1", "--form", "10-K", "--form", "10-Q", "--out", str(out), *host]) == 0
        assert pq.read_table(out).num_rows == 2
        assert main(["edgar", "fetch", str(out), "--out", str(store), *host, "--json"]) == 0
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (record["fetched"], record["present"], record["failed"]) == (2, 0, {})
        edgar.seen.clear()
        assert main(["edgar", "index", "2023Q1", "--out", str(tmp_path / "all.parquet"), *host]) == 0
        assert main(["edgar", "fetch", str(out), "--out", str(store), *host]) == 0
        asked = set(edgar.counts())
        assert asked <= {"/Archives/edgar/full-index/2023/QTR1/master.gz"}, "what is there is not fetched again"
        assert main(["edgar", "fetch", "edgar/data/1/gone.txt", "--out", str(store), *host]) == 1
        assert main(["edgar", "fetch", str(out), "--out", str(store), "--base-url", edgar.url]) == 2
        assert main(["edgar", "index", "2023Q1", "--out", str(out), *host]) == 2
    assert "--user-agent is empty" in capsys.readouterr().err
