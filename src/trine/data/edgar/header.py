"""The header of a submission, in both of its forms: `KEY: value` lines, and tags as the SEC disseminates them.

A former name of a company is never its name: it stands under keys of its own, which are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date

_LINE = re.compile(r"^[ \t]*([A-Z][A-Z0-9 /&.-]{1,60}):[ \t]*(.*?)[ \t\r]*$")
_TAG = re.compile(r"<([A-Z][A-Z0-9-]{1,40})>([^<\r\n]*)")
_SIC = re.compile(r"\[(\d{3,4})\]|^(\d{3,4})$")
_ACCESSION = re.compile(r"\d{10}-\d{2}-\d{6}")
_ROLES = {
    "FILER",
    "SUBJECT COMPANY",
    "FILED BY",
    "FILED FOR",
    "REPORTING OWNER",
    "ISSUER",
    "SERIAL COMPANY",
    "ISSUING ENTITY",
    "DEPOSITOR",
    "SECURITIZER",
}
_OPENS = {"COMPANY DATA", "OWNER DATA"}
_NAMES = {"COMPANY CONFORMED NAME", "CONFORMED NAME"}
_CIKS = {"CENTRAL INDEX KEY", "CIK"}
_SICS = {"STANDARD INDUSTRIAL CLASSIFICATION", "ASSIGNED SIC"}
_FORMS, _FILED = {"CONFORMED SUBMISSION TYPE", "TYPE"}, {"FILED AS OF DATE", "FILING DATE"}
_PERIODS, _ACCESSIONS = {"CONFORMED PERIOD OF REPORT", "PERIOD"}, {"ACCESSION NUMBER"}
_MOST_LINES = 50_000


@dataclass(frozen=True)
class Company:
    """One that files or is filed about."""

    cik: str
    """Ten digits, or empty."""
    name: str
    sic: str
    """Three or four digits, or empty."""
    role: str
    """`FILER`, `SUBJECT COMPANY`, `REPORTING OWNER`, ... or empty."""


@dataclass(frozen=True)
class Header:
    """What a submission says of itself; empty strings where it says nothing."""

    accession: str = ""
    form: str = ""
    period: str = ""
    """ISO date."""
    filed: str = ""
    """ISO date."""
    companies: tuple[Company, ...] = ()

    @property
    def company(self) -> Company:
        """The filer, else the company that the filing is about, else the first one named."""
        for role in ("FILER", "ISSUER", "SUBJECT COMPANY"):
            for one in self.companies:
                if one.role == role:
                    return one
        return self.companies[0] if self.companies else Company("", "", "", "")


def read_header(text: str) -> Header:
    """A header in either form; anything else gives an empty one."""
    tagged = "<SEC-HEADER>" not in text and "<IMS-HEADER>" not in text and "<ACCESSION-NUMBER>" in text
    return _gather(_tags(text) if tagged else _lines(text))


def iso_date(text: str) -> str:
    """`19951231`, `1995-12-31` or `12/31/1995` as an ISO date; an empty string for what is no date."""
    text = text.strip()
    if match := re.fullmatch(r"(\d{1,2})/(\d{1,2})/(\d{4})", text):
        text = f"{match[3]}{int(match[1]):02}{int(match[2]):02}"
    digits = text.replace("-", "")[:8]
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])).isoformat()
    except ValueError:
        return ""


@dataclass
class _Open:
    role: str
    cik: str = ""
    name: str = ""
    sic: str = ""

    def closed(self) -> Company:
        return Company(self.cik, self.name, self.sic, self.role)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(key, value) of `KEY: value` lines and of the few tags among them."""
    for _, line in zip(range(_MOST_LINES), text.splitlines(), strict=False):
        if match := _LINE.match(line[:1000]):
            yield match[1], match[2]
        elif match := _TAG.match(line[:1000]):
            yield match[1].replace("-", " "), match[2].strip()


def _tags(text: str) -> Iterator[tuple[str, str]]:
    for _, match in zip(range(_MOST_LINES), _TAG.finditer(text), strict=False):
        yield match[1].replace("-", " "), match[2].strip()


@dataclass
class _Found:
    values: dict[str, str] = field(default_factory=dict)

    def first(self, keys: Iterable[str]) -> str:
        return next((self.values[key] for key in keys if key in self.values), "")


def _gather(pairs: Iterable[tuple[str, str]]) -> Header:
    found, companies, role = _Found(), [], ""
    for key, value in pairs:
        plain = key.replace("-", " ")
        if plain in _ROLES and not value:
            role = plain
        elif plain in _OPENS and not value:
            companies.append(_Open(role))
        elif companies and plain in _NAMES | _CIKS | _SICS:
            _set(companies[-1], plain, value)
        elif not companies and value:
            found.values.setdefault(plain, value)
    accession = _ACCESSION.search(found.first(_ACCESSIONS))
    return Header(
        accession[0] if accession else "",
        found.first(_FORMS).strip().upper(),
        iso_date(found.first(_PERIODS)),
        iso_date(found.first(_FILED)),
        tuple(dict.fromkeys(one.closed() for one in companies if one.cik or one.name)),
    )


def _set(company: _Open, key: str, value: str) -> None:
    if key in _NAMES:
        company.name = company.name or value
    elif key in _CIKS and value.isdigit() and len(value) <= 10:
        company.cik = company.cik or value.zfill(10)
    elif key in _SICS and (match := _SIC.search(value)):
        company.sic = company.sic or match[1] or match[2]
