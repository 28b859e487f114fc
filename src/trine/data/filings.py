"""Filings in, documents out: the Parquet of `trine edgar parse`, or edgar-crawler's JSON, one file per filing.

Each document keeps accession (or, where a filing tells none, its source path), cik, company, form, period, filed and,
of an item, part and item beside its text. Items that the source's settings leave out come out as `Unwanted`, so that
the ledger has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trine.data.config import FILING_FIELDS, FilingsConfig, SourceConfig
from trine.data.document import BadRecord, Document, Unwanted
from trine.data.sources import PARQUET, BadFile, document_of, endings_of, inspect, open_packed, parquet_rows, reading

_TEXT = "text"
_CRAWLER = {
    "cik": "cik",
    "company": "company",
    "form": "filing_type",
    "period": "period_of_report",
    "filed": "filing_date",
}
_ITEM = re.compile(r"(?:part_(?P<part>\w+?)_+)?item_(?P<item>[0-9][0-9A-Za-z.]*)")
_ACCESSION = re.compile(r"\d{10}-\d{2}-\d{6}")
_PARTS = {"1": "I", "2": "II", "3": "III", "4": "IV"}
Record = Document | BadRecord | Unwanted


def read_filings(source: SourceConfig, path: Path) -> Iterator[Record]:
    """Every item of one file, or every filing of it, in order. Raises BadFile."""
    assert source.filings is not None
    ending, packed = inspect(path, endings_of(source))
    with reading(path):
        rows = _rows(path) if ending in PARQUET else _crawled(path, packed)
        records = _chosen(source.filings, rows)
        yield from records if source.filings.documents == "item" else _joined(records)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from parquet_rows(path, _TEXT, (*FILING_FIELDS, "confidence", "source_path"))


def _crawled(path: Path, packed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The items of one filing as edgar-crawler writes them: `item_1A`, or `part_2__item_1A` of a 10-Q."""
    with open_packed(path, packed) as stream:
        try:
            record = json.loads(stream.read().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise BadFile(f"{path}: not JSON ({error})") from None
    if not isinstance(record, dict) or not {"cik", "filing_type"} <= record.keys():
        raise BadFile(f"{path}: has no cik and filing_type; expected a filing as edgar-crawler writes it")
    named = {field: record.get(key) for field, key in _CRAWLER.items()}
    accession = _ACCESSION.search(str(record.get("complete_text_filing_link") or record.get("filename") or ""))
    named["accession"] = accession[0] if accession else path.stem
    for key, text in record.items():
        if (one := _ITEM.fullmatch(key)) and text:
            part = one["part"] or ""
            yield f"{path}#{key}", named | {_TEXT: text, "part": _PARTS.get(part, part), "item": one["item"]}


def _chosen(config: FilingsConfig, rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[Record]:
    for where, row in rows:
        row["accession"] = row.get("accession") or row.get("source_path")
        why = _unwanted(config, row)
        yield Unwanted(where, why) if why else document_of(row, where, _TEXT, FILING_FIELDS)


def _unwanted(config: FilingsConfig, row: dict[str, Any]) -> str | None:
    if config.forms and row.get("form") not in config.forms:
        return "form not asked for"
    item, part = row.get("item") or "", row.get("part") or ""
    if config.items and item not in config.items and f"{part}-{item}" not in config.items:
        return "item not asked for"
    if config.min_confidence:
        try:
            sure = float(row.get("confidence") or 0)
        except ValueError:
            sure = 0.0
        if not sure >= config.min_confidence:
            return "confidence below min_confidence"
    return None


def _joined(records: Iterator[Record]) -> Iterator[Record]:
    """The items of each filing, which follow each other, as one document."""
    filing: list[Document] = []
    for one in records:
        if not isinstance(one, Document):
            yield one
            continue
        if filing and one.fields.get("accession") != filing[0].fields.get("accession"):
            yield _filing(filing)
            filing = []
        filing.append(one)
    if filing:
        yield _filing(filing)


def _filing(items: list[Document]) -> Document:
    fields = {name: value for name, value in items[0].fields.items() if name not in ("part", "item")}
    return Document("\n\n".join(one.text.strip("\n") for one in items), items[0].path, fields=fields)
