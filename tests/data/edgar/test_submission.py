"""Submissions of every age and wrapper: headers, parts, places of bytes, and what is refused."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import pytest

from trine.data.edgar import unpack
from trine.data.edgar.header import read_header
from trine.data.edgar.submission import cut_short, read_submission
from trine.errors import BadInput

HEADER = """<SEC-DOCUMENT>0000950129-95-001652.txt : 19960102
<SEC-HEADER>0000950129-95-001652.hdr.sgml : 19960102
<ACCEPTANCE-DATETIME>19951228120000
ACCESSION NUMBER:\t\t0000950129-95-001652
CONFORMED SUBMISSION TYPE:\t{form}
PUBLIC DOCUMENT COUNT:\t\t2
CONFORMED PERIOD OF REPORT:\t19951031
FILED AS OF DATE:\t\t19951228

SUBJECT COMPANY:

\tCOMPANY DATA:
\t\tCOMPANY CONFORMED NAME:\t\t\tTARGET INC
\t\tCENTRAL INDEX KEY:\t\t\t0000000042
\t\tSTANDARD INDUSTRIAL CLASSIFICATION:\tRADIO & TELEVISION [4832]

\tFORMER COMPANY:
\t\tFORMER CONFORMED NAME:\tOLD NAME CORP
\t\tDATE OF NAME CHANGE:\t19900101

FILER:

\tCOMPANY DATA:
\t\tCOMPANY CONFORMED NAME:\t\t\tCOMMON SENSE: TRUST
\t\tCENTRAL INDEX KEY:\t\t\t0000810271
\t\tSTANDARD INDUSTRIAL CLASSIFICATION:\t []

FILER:

\tCOMPANY DATA:
\t\tCOMPANY CONFORMED NAME:\t\t\tSECOND TRUST
\t\tCENTRAL INDEX KEY:\t\t\t0000810272
\t\tSTANDARD INDUSTRIAL CLASSIFICATION:\t6199
</SEC-HEADER>
"""


def document(kind: str, body: str, sequence: int = 1, name: str = "") -> str:
    filename = f"<FILENAME>{name}\n" if name else ""
    return (
        f"<DOCUMENT>\n<TYPE>{kind}\n<SEQUENCE>{sequence}\n{filename}<DESCRIPTION>A & B <5%\n"
        f"<TEXT>\n{body}\n</TEXT>\n</DOCUMENT>\n"
    )


def full(form: str, *documents: str) -> str:
    return HEADER.format(form=form) + "".join(documents) + "</SEC-DOCUMENT>\n"


def test_text_header_with_several_filers_and_a_former_name() -> None:
    header = read_submission(full("10-K", document("10-K", "text")).encode(), "a.txt").header
    assert (header.accession, header.form) == ("0000950129-95-001652", "10-K")
    assert (header.period, header.filed) == ("1995-10-31", "1995-12-28")
    assert [(one.cik, one.name, one.sic, one.role) for one in header.companies] == [
        ("0000000042", "TARGET INC", "4832", "SUBJECT COMPANY"),
        ("0000810271", "COMMON SENSE: TRUST", "", "FILER"),
        ("0000810272", "SECOND TRUST", "6199", "FILER"),
    ]
    assert header.company.name == "COMMON SENSE: TRUST"


@pytest.mark.parametrize("newline", ["", "\n"])
def test_dissemination_form_on_one_line_and_on_many(newline: str) -> None:
    tags = (
        "<SUBMISSION>\n<ACCESSION-NUMBER>0001127602-25-004598|<TYPE>4|<PERIOD>20250212|<FILING-DATE>20250213|"
        "<REPORTING-OWNER>|<OWNER-DATA>|<CONFORMED-NAME>Doe Jane|<CIK>0001870985|</OWNER-DATA>|"
        "<FILING-VALUES>|<FORM-TYPE>4|</FILING-VALUES>|</REPORTING-OWNER>|<ISSUER>|<COMPANY-DATA>|"
        "<CONFORMED-NAME>ARROW & SON, INC.|<CIK>0000007536|<ASSIGNED-SIC>5065|</COMPANY-DATA>|<FORMER-COMPANY>|"
        "<FORMER-CONFORMED-NAME>OLD ARROW|</FORMER-COMPANY>|</ISSUER>|<DOCUMENT>|<TYPE>4|<SEQUENCE>1|"
        "<FILENAME>form4.xml|<DESCRIPTION>PRIMARY DOCUMENT|<TEXT>|<XML>|<?xml version='1.0'?><a>7</a>|</XML>|"
        "</TEXT>|</DOCUMENT>|</SUBMISSION>"
    )
    data = tags.replace("|", newline).encode()
    read = read_submission(data, "a.nc")
    assert read.container == "dissemination"
    assert (read.header.form, read.header.period, read.header.filed) == ("4", "2025-02-12", "2025-02-13")
    assert [(one.cik, one.name, one.sic) for one in read.header.companies] == [
        ("0001870985", "Doe Jane", ""),
        ("0000007536", "ARROW & SON, INC.", "5065"),
    ]
    assert read.header.company.cik == "0000007536"
    (part,) = read.parts
    assert (part.filename, part.description, part.kind) == ("form4.xml", "PRIMARY DOCUMENT", "xml")
    assert part.data == b"<?xml version='1.0'?><a>7</a>" == data[part.byte_start : part.byte_end]


def test_main_document_is_the_form_itself_and_never_an_exhibit() -> None:
    exhibit, later = document("EX-10.1", "an agreement", 1), document("10-K/A", "another", 3)
    read = read_submission(full("10-K", exhibit, document("10-K", "the report", 2), later).encode(), "a")
    main = read.main()
    assert main is not None
    assert (main.type, main.sequence, main.data) == ("10-K", "2", b"the report")
    only = read_submission(full("10-K", exhibit, document("GRAPHIC", "begin 644 a.jpg\nM1234\nend")).encode(), "a")
    assert only.main() is None
    assert [part.kind for part in only.parts] == ["text", "binary"]


def test_binary_main_document_gives_way_to_its_text() -> None:
    pdf = document("LETTER", "<PDF>\nbegin 644 filename1\nM)5!$\nend\n</PDF>")
    main = read_submission(full("UPLOAD", pdf, document("TEXT-EXTRACT", "Dear Sir", 2)).encode(), "a").main()
    assert main is not None
    assert main.type == "TEXT-EXTRACT"


PEM = "-----BEGIN PRIVACY-ENHANCED MESSAGE-----\nProc-Type: 2001,MIC-CLEAR\nMIC-Info: RSA-MD5,RSA,\n i+u3=\n\n"


def test_pem_wrapper_crlf_gzip_and_encodings_change_nothing() -> None:
    text = full("10-K", document("10-K", "Caf\u00e9 \u2014 \u201cquoted\u201d", name="a.txt"))
    plain = read_submission(text.encode(), "a")
    wrapped = PEM + text + "-----END PRIVACY-ENHANCED MESSAGE-----\n"
    for data in (wrapped.encode(), gzip.compress(text.encode()), text.encode("cp1252"), text.encode() + b"\0\0"):
        read = read_submission(data, "a")
        assert (read.header, read.warnings) == (plain.header, ())
        assert unpack.decode(read.parts[0].data) == "Caf\u00e9 \u2014 \u201cquoted\u201d"
    windows = read_submission(text.replace("\n", "\r\n").encode(), "a")
    assert windows.header == plain.header
    assert windows.parts[0].type == "10-K"


@pytest.mark.parametrize(
    ("text", "types", "container"),
    [
        (document("S-3/A", "one") + document("EX-5", "two", 2), ["S-3/A", "EX-5"], "documents"),
        ("<TYPE>S-3/A\n<SEQUENCE>1\n<TEXT>\none\n</TEXT>\n", ["S-3/A"], "documents"),
        ("<TYPE>10-Q\n<TEXT>\none\n</TEXT>\n<TYPE>EX-27\n<TEXT>\ntwo\n</TEXT>\n", ["10-Q", "EX-27"], "documents"),
        ("<html><body><p>Item 1. <DOCUMENT> of title</p></body></html>", [""], "bare"),
        ("ITEM 1. BUSINESS\n\nWe make <TYPE> writers.\n", [""], "bare"),
    ],
)
def test_documents_without_a_header(text: str, types: list[str], container: str) -> None:
    read = read_submission(text.encode(), "a.txt")
    assert ([part.type for part in read.parts], read.container) == (types, container)
    for part in read.parts:
        assert text.encode()[part.byte_start : part.byte_end] == part.data
    main = read.main()
    assert main is not None
    assert main.type == types[0]


def test_unclosed_documents_are_read_and_said() -> None:
    text = HEADER.format(form="8-K") + "<DOCUMENT>\n<TYPE>8-K\n<TEXT>\nfirst\n" + document("EX-99", "second", 2)
    read = read_submission(text.encode(), "a")
    assert [part.type for part in read.parts] == ["8-K", "EX-99"]
    assert read.parts[0].data == b"first"
    assert any("no </DOCUMENT> after document 1" in one for one in read.warnings)
    assert any("</SEC-DOCUMENT> is missing" in one for one in read.warnings)
    assert cut_short(full("8-K").encode()) is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"\0\0 \n\0", "holds no text"),
        (b"PK\x03\x04" + b"\0" * 40, "ZIP archive"),
        (gzip.compress(b"a filing")[:-9], "cut"),
        (gzip.compress(b"x" * 5000)[:20] + b"\xff" * 30, "damaged|cut"),
        ("Item 1".encode("utf-16"), "UTF-16"),
        (b"begin 644 a.pdf\nM)5!$\nend\n", "uuencoded"),
        (bytes(range(256)) * 20, "binary data"),
    ],
)
def test_what_is_no_filing_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadInput, match=why) as caught:
        read_submission(data, "some/file.txt")
    assert "some/file.txt" in str(caught.value)


def test_gzip_bomb_is_bounded() -> None:
    bomb = gzip.compress(bytes(80 << 20), 1)
    with pytest.raises(BadInput, match="unpacks to more than"):
        read_submission(bomb, "bomb.gz")


@pytest.mark.parametrize(
    "data",
    [
        b"<DOCUMENT>\n<TYPE>" * 20_000,
        b"<DOCUMENT>\n<TEXT>" * 20_000,
        b"\n" * 1_000_000 + b"<TYPE>" * 1000,
        b"<DOCUMENT>" + b" " * 1_000_000,
        b"<SUBMISSION>\n<ACCESSION-NUMBER>" + b"<A" * 200_000,
        b"<SEC-HEADER>\n" + b"A" * 1_000_000 + b":",
        b"<TYPE>X\n<TEXT>" + b"\n<TYPE>X\n" * 30_000,
    ],
)
def test_hostile_input_takes_linear_time(data: bytes) -> None:
    began = time.process_time()
    read_submission(data, "hostile")
    assert time.process_time() - began < 2 * max(1, len(data) / 1e6)


def test_header_of_nothing() -> None:
    header = read_header("no header here")
    assert (header.accession, header.form, header.companies, header.company.cik) == ("", "", (), "")


def test_real_submissions_agree_with_their_manifest(trine_data: Path) -> None:
    folder = trine_data / "filings"
    if not (folder / "MANIFEST.jsonl").is_file():
        pytest.skip("no filings in the data folder")
    listed = [json.loads(line) for line in (folder / "MANIFEST.jsonl").read_text().splitlines()]
    listed = [one for one in listed if one["kind"] == "full-submission"]
    assert listed
    for one in listed:
        raw = (folder / one["path"]).read_bytes()
        data = unpack.unzipped(raw, one["path"])
        read = read_submission(raw, one["path"])
        header = read.header
        expected = [one[name] or "" for name in ("accession", "form", "filed", "period")]
        assert [header.accession, header.form, *(x.replace("-", "") for x in (header.filed, header.period))] == expected
        assert one["company"] in {None, *(company.name for company in header.companies)}
        assert len(read.parts) == one["documents"]
        assert [part.type for part in read.parts][: len(one["doc_types"])] == one["doc_types"]
        assert bool(read.warnings) is not one["complete"], (one["path"], read.warnings)
        assert read.main() is not None, one["path"]
        assert all(data[part.byte_start : part.byte_end] == part.data for part in read.parts)
