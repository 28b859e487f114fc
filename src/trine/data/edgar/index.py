"""Quarterly indexes of EDGAR: master.idx, form.idx and company.idx into one table, filtered.

An index names no industry. `sic` is filled from submissions JSON (`CIK##########.json` of data.sec.gov) where a folder
of them is given, and is empty otherwise.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trine.data.edgar.header import iso_date
from trine.data.edgar.unpack import decode, unzipped
from trine.errors import BadInput
from trine.manifest import fsync_path, remove_stale
from trine.progress import Progress, silent

COLUMNS = ("cik", "company", "form", "filed", "accession", "path", "sic")
_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
_GROUP_ROWS = 100_000
_ACCESSION = re.compile(r"(\d{10}-\d{2}-\d{6})")
_QUARTER = re.compile(r"(\d{4})[Qq]([1-4])(?:-(\d{4})[Qq]([1-4]))?")
_FIRST_YEAR, _LAST_YEAR = 1993, 2100


@dataclass(frozen=True)
class Wanted:
    """Which filings; empty means all. ISO dates, inclusive; a form is its exact name (`10-K` is not `10-K/A`)."""

    forms: frozenset[str] = frozenset()
    ciks: frozenset[str] = frozenset()
    since: str = ""
    until: str = ""
    sics: frozenset[str] = frozenset()

    def takes(self, row: dict[str, str]) -> bool:
        return (
            (not self.forms or row["form"].upper() in self.forms)
            and (not self.ciks or row["cik"] in self.ciks)
            and (not self.since or row["filed"] >= self.since)
            and (not self.until or row["filed"] <= self.until)
            and (not self.sics or row["sic"] in self.sics)
        )


def wanted(
    forms: Iterable[str] = (),
    ciks: Iterable[str] = (),
    since: str | None = None,
    until: str | None = None,
    sics: Iterable[str] = (),
) -> Wanted:
    """The filter that words of the command line name. Raises BadInput for a CIK, SIC or date that is none."""
    for name, values, most in (("--cik", ciks, 10), ("--sic", sics, 4)):
        for value in values:
            if not value.isdigit() or len(value) > most:
                raise BadInput(f"{name} {value}: expected at most {most} digits")
    for name, value in (("--from", since), ("--to", until)):
        if value is not None and iso_date(value) != value:
            raise BadInput(f"{name} {value}: expected a date as 2024-03-31")
    if since and until and since > until:
        raise BadInput(f"--from {since} is later than --to {until}")
    return Wanted(
        frozenset(form.upper() for form in forms),
        frozenset(cik.zfill(10) for cik in ciks),
        since or "",
        until or "",
        frozenset(sic.zfill(4) for sic in sics),
    )


def quarters(word: str) -> list[tuple[int, int]] | None:
    """`2023Q4` or `2020Q1-2023Q4` as (year, quarter) pairs; None for a word that is neither."""
    match = _QUARTER.fullmatch(word)
    if match is None:
        return None
    first = int(match[1]) * 4 + int(match[2]) - 1
    last = int(match[3]) * 4 + int(match[4]) - 1 if match[3] else first
    if not (_FIRST_YEAR * 4 <= first <= last < _LAST_YEAR * 4):
        raise BadInput(f"{word}: expected quarters from {_FIRST_YEAR}Q1 on, the earlier first")
    return [(number // 4, number % 4 + 1) for number in range(first, last + 1)]


def read_sics(folder: Path) -> dict[str, str]:
    """CIK (ten digits) to SIC (four digits) of every submissions JSON in `folder` and below it."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder (expected submissions JSON, CIK##########.json)")
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.json")):
        try:
            record = json.loads(path.read_bytes())
            cik, sic = str(record["cik"]), str(record["sic"])
        except (ValueError, KeyError, TypeError):
            continue
        if cik.isdigit() and sic.isdigit():
            found[cik.zfill(10)] = sic.zfill(4)
    if not found:
        raise BadInput(f"{folder}: holds no submissions JSON with a CIK and a SIC")
    return found


def read_index(path: Path, unread: list[str]) -> Iterator[dict[str, str]]:
    """The rows of one index file, in gzip or not; places of lines that are none are added to `unread`.

    Raises BadInput for a file that is no index: one without titles, or with more than a hundredth of such lines.
    """
    try:
        lines = decode(unzipped(path.read_bytes(), str(path))).splitlines()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    rule = next((n for n, line in enumerate(lines[:200]) if line.startswith("-" * 20) and not line.strip("- ")), None)
    if rule is None or rule == 0:
        raise BadInput(f"{path}: has no line of dashes under its titles, so it is no EDGAR index")
    titles = lines[rule - 1]
    split = _by_bars(titles) if "|" in titles else _by_places(path, titles)
    for number, line in enumerate(lines[rule + 1 :], rule + 2):
        if not line.strip():
            continue
        fields = split(line)
        filed = iso_date(fields.get("date", ""))
        accession = _ACCESSION.search(fields.get("path", ""))
        if not filed or not fields.get("cik", "").isdigit():
            unread.append(f"{path}:{number}: is no row of an EDGAR index: {line[:80]!r}")
            if len(unread) > len(lines) // 100:
                raise BadInput(unread[-1])
            continue
        yield {
            "cik": fields["cik"].zfill(10),
            "company": fields["company"],
            "form": fields["form"],
            "filed": filed,
            "accession": accession[1] if accession else "",
            "path": fields["path"],
            "sic": "",
        }


_TITLES = {
    "cik": "cik",
    "company name": "company",
    "form type": "form",
    "date filed": "date",
    "filename": "path",
    "file name": "path",
}


def _by_bars(titles: str) -> Any:
    names = [_TITLES.get(one.strip().lower(), "") for one in titles.split("|")]
    return lambda line: dict(zip(names, (one.strip() for one in line.split("|")), strict=False))


def _by_places(path: Path, titles: str) -> Any:
    """Of form.idx and company.idx: the last three columns hold no blanks; the first two stand at the titles' places."""
    lower = titles.lower()
    at = {name: lower.find(title) for title, name in _TITLES.items() if title in lower}
    if not {"cik", "company", "form", "date", "path"} <= set(at):
        raise BadInput(
            f"{path}: its titles are {titles.strip()!r}, expected form type, company, CIK, date and file name"
        )
    first, second = sorted(("company", "form"), key=lambda name: at[name])

    def split(line: str) -> dict[str, str]:
        parts = line.rsplit(None, 3)
        if len(parts) != 4:
            return {}
        left = parts[0]
        return {
            first: left[: at[second]].strip(),
            second: left[at[second] :].strip(),
            "cik": parts[1],
            "date": parts[2],
            "path": parts[3],
        }

    return split


def build_index(
    files: Sequence[Path], out: Path, want: Wanted, sics: dict[str, str] | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """The wanted rows of all `files` in one Parquet file `out`, which appears whole. Returns counts."""
    if out.exists():
        raise BadInput(f"{out}: already exists; name another --out, or remove it first")
    if want.sics and sics is None:
        raise BadInput("--sic needs --submissions DIR: an index names no industry, submissions JSON does")
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(out)
    temporary = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    read = kept = without = 0
    unread: list[str] = []
    try:
        with pq.ParquetWriter(temporary, _SCHEMA, compression="zstd") as writer:
            for number, path in enumerate(files):
                progress(number, len(files), f"index: files, {kept:,} filings")
                rows: list[dict[str, str]] = []
                bad: list[str] = []
                for row in read_index(path, bad):
                    read += 1
                    if sics is not None:
                        row["sic"] = sics.get(row["cik"], "")
                        without += not row["sic"]
                    if want.takes(row):
                        rows.append(row)
                        kept += 1
                    if len(rows) >= _GROUP_ROWS:
                        writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                        rows = []
                unread += bad
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
        progress(len(files), len(files), f"index: files, {kept:,} filings")
        fsync_path(temporary)
        temporary.rename(out)
        fsync_path(out.parent)
    finally:
        temporary.unlink(missing_ok=True)
    record = {"files": len(files), "filings": read, "kept": kept, "unread": unread}
    return record if sics is None else record | {"without_sic": without}


def read_paths(index: Path) -> list[str]:
    """What an index file of ours names to fetch, each filing once whatever number of companies it stands under."""
    try:
        table = pq.read_table(index, columns=["path", "accession"])
    except (pa.ArrowException, OSError, KeyError) as error:
        raise BadInput(f"{index}: is no table of `trine edgar index` ({str(error).splitlines()[0]})") from None
    unique = {
        accession or path: path
        for path, accession in zip(*(table.column(name).to_pylist() for name in ("path", "accession")), strict=True)
    }
    return list(unique.values())
