"""Filings as a source: items of a parse, edgar-crawler's files, what is chosen, joined, kept beside the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted import background, write_items
from pydantic import ValidationError

from tests.conftest import Command
from trine.data.config import (
    BoilerplateConfig,
    CorpusConfig,
    FilingsConfig,
    HeldoutRule,
    NearDuplicatesConfig,
    QualityConfig,
    SourceConfig,
)
from trine.data.corpus import build_corpus, read_rows
from trine.errors import BadInput


def built(
    path: Path, out: Path, filings: dict[str, Any], **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    source = SourceConfig(name="f", path=str(path), filings=FilingsConfig(**filings))
    ledger = build_corpus(CorpusConfig(sources=(source,), **options), out)
    return [row for rows in read_rows(out, "train") for row in rows], ledger


def test_items_are_chosen_and_keep_their_fields(tmp_path: Path) -> None:
    rows = background(4, 1, items=3)
    rows[0]["form"], rows[1]["confidence"], rows[2]["part"] = "10-K/A", "0.2", "II"
    rows[3]["confidence"] = "no number"
    write_items(rows, tmp_path / "items.parquet")
    pq.write_table(pa.table({"source_path": ["x"], "status": ["ok"]}), tmp_path / "documents.parquet")
    filings = {"forms": ("10-K",), "items": ("1", "2", "II-3"), "min_confidence": 0.5}
    kept, ledger = built(tmp_path, tmp_path / "out", filings)
    assert ledger["sources"][0]["dropped"] == {
        "form not asked for": 1,
        "confidence below min_confidence": 2,
        "item not asked for": 3,
    }
    assert ledger["sources"][0]["documents_in"] == 12
    assert [row["text"] for row in kept] == [rows[i]["text"] for i in (2, 4, 6, 7, 9, 10)]
    first = {key: kept[0][key] for key in ("accession", "cik", "company", "form", "filed", "part", "item")}
    assert first == {key: rows[2][key] for key in first}
    assert kept[0]["path"] == f"{tmp_path / 'items.parquet'}#2"


def test_the_items_of_a_filing_make_one_document(tmp_path: Path) -> None:
    rows = background(3, 1, items=3)
    write_items(rows, tmp_path / "items.parquet")
    kept, _ = built(tmp_path / "items.parquet", tmp_path / "out", {"documents": "filing", "items": ("1", "3")})
    assert [row["text"] for row in kept] == [f"{rows[i]['text']}\n\n{rows[i + 2]['text']}" for i in (0, 3, 6)]
    assert (kept[0]["accession"], kept[0]["item"]) == (rows[0]["accession"], None)


def test_filings_without_an_accession_are_told_apart_by_their_path(tmp_path: Path) -> None:
    rows = [dict(row, accession="", filed="") for row in background(3, 1, items=2)]
    write_items(rows, tmp_path / "items.parquet")
    kept, _ = built(tmp_path / "items.parquet", tmp_path / "out", {"documents": "filing"})
    assert [row["accession"] for row in kept] == [row["source_path"] for row in rows[::2]]


def test_files_of_edgar_crawler_are_read(tmp_path: Path) -> None:
    link = "https://www.sec.gov/Archives/edgar/data/1/0000000001-20-000002.txt"
    head = {
        "cik": "1",
        "company": "C",
        "filing_type": "10-Q",
        "filing_date": "2020-05-01",
        "period_of_report": "2020-03-31",
    }
    items = {"part_1_item_1": "Statements.", "part_2_item_1A": "Risks.", "part_2_item_2": "", "part_1": "Both."}
    (tmp_path / "a.json").write_text(json.dumps(head | {"complete_text_filing_link": link} | items))
    (tmp_path / "b.json").write_text(json.dumps([1]))
    kept, ledger = built(tmp_path, tmp_path / "out", {})
    assert [(row["text"], row["part"], row["item"]) for row in kept] == [
        ("Statements.", "I", "1"),
        ("Risks.", "II", "1A"),
    ]
    assert {row["accession"] for row in kept} == {"0000000001-20-000002"}
    assert ledger["quarantine"]["records"] == ledger["sources"][0]["quarantined"] == 1
    assert ledger["sources"][0]["documents_in"] == 3


def test_columns_of_other_sources_are_kept_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "who": "me", "year": 2020}\n{"text": "y", "who": null}\n')
    (tmp_path / "b.txt").write_text("z\n")
    sources = (
        SourceConfig(name="a", path=str(tmp_path / "a.jsonl"), fields=("who", "year")),
        SourceConfig(name="b", path=str(tmp_path / "b.txt")),
    )
    rule = HeldoutRule(set="late", by="year", after="2019")
    build_corpus(CorpusConfig(sources=sources, heldout=(rule,)), tmp_path / "out")
    rows = {name: [row for rows in read_rows(tmp_path / "out", name) for row in rows] for name in ("late", "train")}
    assert [(row["text"], row["who"], row["year"]) for row in rows["late"]] == [("x", "me", "2020")]
    assert [(row["text"], row["who"], row["year"]) for row in rows["train"]] == [("y", None, None), ("z\n", None, None)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heldout": (HeldoutRule(set="a", by="cik", fraction=0.1),)}, "no source keeps the field 'cik'"),
        ({"boilerplate": BoilerplateConfig(company="firm")}, "no source keeps the field 'firm'"),
    ],
)
def test_rules_ask_for_fields_that_are_kept(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CorpusConfig(sources=(SourceConfig(name="a", path="a.txt"),), **options)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"set": "train", "by": "cik", "fraction": 0.1}, "not held out"),
        ({"set": "a", "by": "cik"}, "either fraction or after"),
        ({"set": "a", "by": "cik", "fraction": 0.1, "after": "2020"}, "either fraction or after"),
        ({"set": "a", "by": "filed", "after": "June"}, "pattern"),
    ],
)
def test_rules_of_holding_out_are_checked(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HeldoutRule(**given)


def test_bad_files_default_to_quarantine_for_filings_alone() -> None:
    filings = SourceConfig(name="f", path="x", filings=FilingsConfig())
    assert CorpusConfig(sources=(filings,)).bad_files == "quarantine"
    assert CorpusConfig(sources=(filings,), bad_files="stop").bad_files == "stop"
    assert CorpusConfig(sources=(SourceConfig(name="t", path="x"),)).bad_files == "stop"


def test_a_file_without_text_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"accession": ["a"]}), tmp_path / "items.parquet")
    with pytest.raises(BadInput, match=r"items\.parquet: has no column 'text'"):
        built(tmp_path / "items.parquet", tmp_path / "out", {}, bad_files="stop")


def test_the_command_says_what_was_dropped(tmp_path: Path, trine: Command) -> None:
    rows = background(6, 1)
    write_items([*rows, dict(rows[0], text=None)], tmp_path / "items.parquet")
    text = f"corpus: {{sources: [{{name: f, path: {tmp_path}/items.parquet, filings: {{}}}}], near_duplicates: {{}}}}\n"
    (tmp_path / "c.yaml").write_text(text)
    done = trine("corpus", tmp_path / "c.yaml", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 to quarantine" in done.stdout


def test_real_filings_pass_the_limits_of_quality(tmp_path: Path, trine_data: Path) -> None:
    path = trine_data / "filings" / "edgar-crawler" / "extracted"
    options = {
        "quality": QualityConfig(),
        "near_duplicates": NearDuplicatesConfig(),
        "boilerplate": BoilerplateConfig(),
    }
    kept, ledger = built(path, tmp_path / "out", {"documents": "filing"}, **options)
    dropped = ledger["sources"][0]["dropped"]
    assert dropped.keys() <= {"near-duplicate", "exact duplicate", "nothing but repeated paragraphs"}
    assert len(kept) > 100
    assert ledger["cleaning"]["quality"]["judged"] > 100
    assert ledger["cleaning"]["boilerplate"]["paragraphs"] > 100
