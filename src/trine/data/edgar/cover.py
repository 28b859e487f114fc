"""What a document without a header says of itself on its cover: form, company, CIK and period.

Inline XBRL says it in so many words (`dei:`); otherwise the first page is read. Empty strings where nothing is said.
"""

from __future__ import annotations

import html
import re
from datetime import datetime

from trine.data.edgar.header import Company, Header, iso_date
from trine.data.edgar.unpack import decode

_FACT = re.compile(rb"name=[\"']dei:(\w{1,40})[\"']")
_FACT_MARK = re.compile(rb"<(/?)ix:non(?:Numeric|Fraction)\b")
_FACTS = {b"DocumentType", b"EntityRegistrantName", b"EntityCentralIndexKey", b"DocumentPeriodEndDate"}
_FACT_BYTES, _COVER_BYTES, _COVER_CHARACTERS = 4096, 1 << 17, 12_000
_TAG, _BLANKS = re.compile(r"<[^<>]{0,4000}>"), re.compile(r"[ \t\xa0]{1,}")
_BLOCK = re.compile(r"</?(?:p|div|tr|br|h[1-6]|li|table|center|hr|title)\b[^<>]{0,4000}>", re.IGNORECASE)
_SKIPPED = re.compile(r"<(style|script|head)\b", re.IGNORECASE)
_FORM = re.compile(
    r"\bForm\s{1,9}(10-K(?:SB|405|T)?|10-Q(?:SB|T)?|8-K|20-F|40-F|6-K|11-K|DEF 14A|PRE 14A|S-[1348]|F-[134])\b"
    r"(\s?/\s?A\b)?",
    re.IGNORECASE,
)
_RULE_424 = re.compile(r"\bRule\s{1,9}424\(b\)\s?\((\d)\)", re.IGNORECASE)
_PROXY = re.compile(r"\bSchedule\s{1,9}14A\b", re.IGNORECASE)
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_PERIOD = re.compile(
    r"(?:(?:fiscal|transition|quarterly)\s{1,9}(?:year|period)\s{1,9}ended|quarter\s{1,9}ended|earliest\s{1,9}event\s{1,9}"
    rf"reported|date\s{{1,9}}of\s{{1,9}}report)[^A-Za-z0-9]{{0,40}}(?:\([^)]{{0,80}}\)[^A-Za-z0-9]{{0,40}})?"
    rf"((?:{_MONTH})\s{{1,9}}\d{{1,2}}\s{{0,3}},?\s{{0,3}}\d{{4}})",
    re.IGNORECASE,
)
_EXACT_NAME = re.compile(
    r"\(?\s{0,9}exact\s{1,9}name\s{1,9}of\s{1,9}(?:the\s{1,9})?(?:registrant|issuer)", re.IGNORECASE
)
_ACCESSION = re.compile(r"(?<!\d)(\d{10})-?(\d{2})-?(\d{6})(?!\d)")


def read_cover(data: bytes, filename: str) -> Header:
    """A header made of what the document and its file name say."""
    facts = _facts(data)
    text = _cover_text(data)
    accession = _ACCESSION.search(filename)
    form = facts.get(b"DocumentType", "").upper() or _form(text)
    period = _date(facts.get(b"DocumentPeriodEndDate", ""))
    if not period and (match := _PERIOD.search(text)):
        period = _date(match[1])
    cik = facts.get(b"EntityCentralIndexKey", "")
    name = facts.get(b"EntityRegistrantName", "") or _name(text)
    company = Company(cik.zfill(10) if cik.isdigit() and len(cik) <= 10 else "", name, "", "")
    return Header("-".join(accession.groups()) if accession else "", form, period, "", (company,))


def _facts(data: bytes) -> dict[bytes, str]:
    """The first value of each wanted `dei:` fact."""
    found: dict[bytes, str] = {}
    if b"dei:" not in data:
        return found
    for match in _FACT.finditer(data):
        if match[1] not in _FACTS or match[1] in found:
            continue
        begin = data.find(b">", match.end(), match.end() + _FACT_BYTES) + 1
        if begin and (value := _inside(data[begin : begin + _FACT_BYTES])):
            found[match[1]] = " ".join(_plain(decode(value)).split())
        if len(found) == len(_FACTS):
            break
    return found


def _inside(text: bytes) -> bytes:
    """What stands before the end of the fact that `text` is in; facts within it are part of it."""
    depth = 1
    for mark in _FACT_MARK.finditer(text):
        depth += -1 if mark[1] else 1
        if depth == 0:
            return text[: mark.start()]
    return b""


def _cover_text(data: bytes) -> str:
    """The beginning of the visible text, a line per block."""
    at = max(0, data[: 1 << 22].find(b"</ix:header>"))
    text = decode(data[at : at + _COVER_BYTES])
    if "<" in text:
        text = _plain(_BLOCK.sub("\n", _without_scripts(" ".join(text.split()))))
    return text[:_COVER_CHARACTERS]


def _without_scripts(text: str) -> str:
    """`text` without heads, styles and scripts; one that does not end ends the text."""
    lower, kept, at = text.lower(), [], 0
    while match := _SKIPPED.search(text, at):
        kept.append(text[at : match.start()])
        end = lower.find(f"</{match[1].lower()}", match.end())
        if end < 0:
            return " ".join(kept)
        at = end
    return " ".join([*kept, text[at:]])


def _plain(text: str) -> str:
    return _BLANKS.sub(" ", html.unescape(_TAG.sub("", text)))


def _form(text: str) -> str:
    if match := _FORM.search(text):
        return match[1].upper() + ("/A" if match[2] else "")
    if _PROXY.search(text):
        return "PRE 14A" if re.search(r"[☒xþý]\s{0,5}Preliminary Proxy", text, re.IGNORECASE) else "DEF 14A"
    if match := _RULE_424.search(text):
        return f"424B{match[1]}"
    return ""


def _name(text: str) -> str:
    """The line before "(Exact name of registrant as specified in its charter)"."""
    match = _EXACT_NAME.search(text)
    lines = (
        [line.strip(" \r\t_*") for line in text[max(0, match.start() - 400) : match.start()].splitlines()]
        if match
        else []
    )
    lines = [line for line in lines if line]
    return lines[-1] if lines and len(lines[-1]) <= 150 else ""


def _date(text: str) -> str:
    text = re.sub(r"\s+", " ", text.replace(",", ", ")).strip().replace(" ,", ",")
    for layout in ("%B %d, %Y", "%B %d %Y", "%b %d, %Y"):
        try:
            return datetime.strptime(text, layout).date().isoformat()
        except ValueError:
            continue
    return iso_date(text)
