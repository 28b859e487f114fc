"""A filing as the SEC keeps it: one file of a header and documents in SGML, from 1993 to today.

Read are full submissions (`.txt`), their dissemination form (`.nc`), either in a PEM wrapper, documents without a
header, and a bare HTML or text document; any of them in gzip. Bytes stay as filed, with their places in the
uncompressed input. Attachments (uuencoded, ZIP, PDF) are recognised and not decoded.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from trine.data.edgar.header import Header, read_header
from trine.data.edgar.unpack import Kind, decode, kind_of, unzipped, why_binary
from trine.errors import BadInput

Container = Literal["submission", "dissemination", "documents", "bare"]

_BEGIN = re.compile(rb"<DOCUMENT>[ \t\r\n]{0,16}(?=<(?:TYPE|SEQUENCE|FILENAME|DESCRIPTION|TEXT)>)")
_BARE_BEGIN = re.compile(rb"(?:\A|\n)[ \t\r\n]{0,64}(?=<TYPE>[^<\r\n]{1,40}[\r\n<])")
_FIELD = re.compile(
    rb"<(TYPE|SEQUENCE|FILENAME|DESCRIPTION)>(.{0,2000}?)(?=[\r\n]|<(?:TYPE|SEQUENCE|FILENAME|DESCRIPTION|TEXT)>|\Z)"
)
_WRAPPER = re.compile(rb"[ \t\r\n]{0,64}<(PDF|XML|XBRL|JSON)>")
_FIELDS_BYTES, _HEADER_BYTES = 1 << 13, 4 << 20
_END, _PEM = b"</DOCUMENT>", b"-----BEGIN PRIVACY-ENHANCED MESSAGE-----"
_EXHIBITS = ("EX-", "GRAPHIC", "XML", "ZIP", "EXCEL", "PDF", "COVER", "LETTER")


@dataclass(frozen=True)
class Part:
    """One document of a submission."""

    type: str
    sequence: str
    filename: str
    description: str
    data: bytes
    """As filed, without the `<TEXT>` and `<XBRL>` marks around it; NUL bytes are blanks, so that places stay."""
    byte_start: int
    byte_end: int
    """Place of `data` in the uncompressed input, the end being one past the last byte."""
    kind: Kind


@dataclass(frozen=True)
class Submission:
    """A filing: who filed what, and its documents."""

    source: str
    container: Container
    header: Header
    parts: tuple[Part, ...]
    sha256: str
    """Of the uncompressed input."""
    warnings: tuple[str, ...] = ()

    def main(self) -> Part | None:
        """The document that the form is about: the readable one whose TYPE is the form, letter for letter.

        Where none is, the first readable document that is no exhibit. An exhibit never takes its place.
        """
        readable = [part for part in self.parts if part.kind != "binary"]
        same = [part for part in readable if self.header.form and part.type == self.header.form]
        return next(iter(same or [part for part in readable if not part.type.startswith(_EXHIBITS)]), None)


def read_submission(data: bytes, source: str) -> Submission:
    """The filing in `data`; `source` names it in errors.

    Raises BadInput for what is empty, damaged, too large, or no text at all.
    """
    return read_unpacked(unzipped(data, source), source)


def read_unpacked(data: bytes, source: str) -> Submission:
    """As `read_submission`, of bytes that are out of gzip."""
    if not data.strip(b" \t\r\n\0"):
        raise BadInput(f"{source}: holds no text" if data else f"{source}: is empty")
    digest = hashlib.sha256(data).hexdigest()
    begins = [match.end() for match in _BEGIN.finditer(data)]
    first = data.find(b"<DOCUMENT>") if begins else len(data)
    header_text = decode(data[: min(first, _HEADER_BYTES)])
    tagged = "<ACCESSION-NUMBER>" in header_text[:4096] or header_text.lstrip().startswith("<SUBMISSION>")
    if not begins and (headless := _headless(data)):
        begins, first = headless, headless[0]
        header_text = ""
    if not begins:
        return _bare(data, source, digest, header_text)
    header = read_header(header_text)
    parts, warnings = _parts(data, begins)
    if not header.form and parts:
        header = Header(header.accession, parts[0].type, header.period, header.filed, header.companies)
    container: Container = "dissemination" if tagged else "submission" if header.accession else "documents"
    if why := cut_short(data):
        warnings.append(why)
    return Submission(source, container, header, tuple(parts), digest, tuple(warnings))


def cut_short(data: bytes) -> str | None:
    """Why a submission is not whole, by the mark at its end that its beginning promises; None where it is."""
    head, tail = data[:4096], data[-4096:]
    pairs = (
        (_PEM, b"-----END PRIVACY-ENHANCED MESSAGE-----"),
        (b"<SEC-DOCUMENT>", b"</SEC-DOCUMENT>"),
        (b"<SUBMISSION>", b"</SUBMISSION>"),
        (b"<DOCUMENT>", _END),
    )
    for begin, end in pairs:
        if begin in head and end not in tail and (begin != b"<DOCUMENT>" or head.lstrip().startswith(begin)):
            return f"{end.decode()} is missing at the end: the submission is cut"
    return None


def _headless(data: bytes) -> list[int]:
    """Where documents begin in a file that starts with `<TYPE>` and has no `<DOCUMENT>`."""
    if not data[:4096].lstrip().startswith(b"<TYPE>") or b"<TEXT>" not in data[:_FIELDS_BYTES]:
        return []
    found = [match.end() for match in _BARE_BEGIN.finditer(data)]
    return [at for at in found if data.find(b"<TEXT>", at, at + _FIELDS_BYTES) >= 0]


def _parts(data: bytes, begins: list[int]) -> tuple[list[Part], list[str]]:
    parts, unclosed = [], []
    for number, (begin, limit) in enumerate(zip(begins, [*begins[1:], len(data)], strict=True), 1):
        end = data.rfind(_END, begin, limit)
        if end < 0:
            unclosed.append(number)
            end = limit if number == len(begins) else max(begin, data.rfind(b"<", begin, limit))
        parts.append(_part(data, begin, end))
    more = f" and {len(unclosed) - 1:,} more" if len(unclosed) > 1 else ""
    return parts, [f"no {_END.decode()} after document {unclosed[0]}{more}"] if unclosed else []


def _part(data: bytes, begin: int, end: int) -> Part:
    """The document whose fields begin at `begin` and whose body ends before `end`."""
    head_end = min(end, begin + _FIELDS_BYTES)
    text = data.find(b"<TEXT>", begin, head_end)
    fields: dict[bytes, str] = {}
    start = begin
    for match in _FIELD.finditer(data, begin, text if text >= 0 else head_end):
        if match[1] not in fields:
            fields[match[1]] = decode(match[2]).strip()
            start = match.end()
    start = text + len(b"<TEXT>") if text >= 0 else start
    stop = data.rfind(b"</TEXT>", start, end)
    start, stop, wrapper = _unwrapped(data, start, stop if stop >= 0 else end)
    body = data[start:stop]
    filename = fields.get(b"FILENAME", "")
    kind = "binary" if wrapper == b"PDF" else kind_of(body, filename)
    if b"\0" in body and kind != "binary":
        body = body.replace(b"\0", b" ")
    return Part(
        type=fields.get(b"TYPE", "").upper(),
        sequence=fields.get(b"SEQUENCE", ""),
        filename=filename,
        description=fields.get(b"DESCRIPTION", ""),
        data=body,
        byte_start=start,
        byte_end=stop,
        kind=kind,
    )


def _unwrapped(data: bytes, start: int, stop: int) -> tuple[int, int, bytes]:
    """The body inside `<XBRL>`, `<XML>` or `<PDF>`, blank lines around it left out; the wrapper's name."""
    wrapper = b""
    if match := _WRAPPER.match(data, start, stop):
        wrapper, start = match[1], match.end()
        close = data.rfind(b"</" + wrapper + b">", start, stop)
        stop = close if close >= 0 else stop
    while start < stop and data[start] in b"\r\n":
        start += 1
    while stop > start and data[stop - 1] in b" \t\r\n":
        stop -= 1
    return start, stop, wrapper


def _bare(data: bytes, source: str, digest: str, head: str) -> Submission:
    """A single document, or a header whose documents are missing."""
    if "<SEC-HEADER>" in head[:8192] or "<ACCESSION-NUMBER>" in head[:8192]:
        warning = "a header without documents"
        return Submission(source, "submission", read_header(head), (), digest, (warning,))
    if why := why_binary(data):
        raise BadInput(f"{source}: is {why}")
    kind = kind_of(data, source.removesuffix(".gz"))
    body = data.replace(b"\0", b" ") if b"\0" in data else data
    part = Part("", "1", source.rpartition("/")[2].removesuffix(".gz"), "", body, 0, len(data), kind)
    return Submission(source, "bare", Header(), (part,), digest)
