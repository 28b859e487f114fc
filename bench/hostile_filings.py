"""Sixty filings that are broken or meant to break a parser, the same bytes every time.

Used by tests (a sample) and by bench/faults_edgar.py (all of them).
"""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from collections.abc import Callable, Iterator

MAIN = """<html><head><title>10-K</title></head><body><p>FORM 10-K</p><p><b>Item 1. Business</b></p>
<p>We make machines. Revenue was 1,234 in 2023.</p><p><b>Item 1A. Risk Factors</b></p><p>Machines break.</p>
{}<p><b>Item 2. Properties</b></p><p>We own a plant of 4,500 square feet.</p></body></html>"""


def submission(body: str, form: str = "10-K", after: str = "", header: str = "") -> str:
    """A full submission around a main document."""
    return (
        f"<SEC-DOCUMENT>0000000001-24-000001.txt : 20240102\n<SEC-HEADER>0000000001-24-000001.hdr.sgml : 20240102\n"
        f"ACCESSION NUMBER:\t\t0000000001-24-000001\nCONFORMED SUBMISSION TYPE:\t{form}\n"
        f"CONFORMED PERIOD OF REPORT:\t20231231\nFILED AS OF DATE:\t\t20240102\n{header}\nFILER:\n\n\tCOMPANY DATA:\n"
        f"\t\tCOMPANY CONFORMED NAME:\t\t\tHOSTILE INC\n\t\tCENTRAL INDEX KEY:\t\t\t0000000001\n</SEC-HEADER>\n"
        f"<DOCUMENT>\n<TYPE>{form}\n<SEQUENCE>1\n<FILENAME>a.htm\n<TEXT>\n{body}\n</TEXT>\n</DOCUMENT>\n{after}"
        f"</SEC-DOCUMENT>\n"
    )


def page(middle: str) -> bytes:
    """A 10-K in HTML with `middle` in its Item 1A."""
    return MAIN.format(middle).encode()


def text_page(middle: str) -> bytes:
    """A 10-K in plain text with `middle` in its Item 1."""
    return f"FORM 10-K\n\nItem 1.  Business\n\nWe make machines.\n\n{middle}\n\nItem 2.  Properties\n\nNone.\n".encode()


def attachment(kind: str, body: str) -> str:
    return f"<DOCUMENT>\n<TYPE>{kind}\n<SEQUENCE>2\n<FILENAME>b\n<TEXT>\n{body}\n</TEXT>\n</DOCUMENT>\n"


def _uuencoded(data: bytes) -> str:
    import binascii

    lines = [binascii.b2a_uu(data[at : at + 45]).decode() for at in range(0, len(data), 45)]
    return "begin 644 b.zip\n" + "".join(lines) + "`\nend"


def _zip(data: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.htm", data)
    return held.getvalue()


def _table(rows: int) -> str:
    cells = "".join(f"<td>{n},{n % 900 + 100}</td>" for n in range(6))
    return f"<table>{''.join(f'<tr><td>Row {n}</td>{cells}</tr>' for n in range(rows))}</table>"


def _laughs(external: bool = False) -> bytes:
    if external:
        kinds = '<!ENTITY a SYSTEM "file:///etc/passwd"><!ENTITY b SYSTEM "http://127.0.0.1:9/x">'
        return f'<?xml version="1.0"?><!DOCTYPE x [{kinds}]><x><y>&a;&b; 7</y></x>'.encode()
    kinds = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    return f'<?xml version="1.0"?><!DOCTYPE x [{kinds}]><x><y>&a11;</y><z>7</z></x>'.encode()


def _random(size: int, alphabet: bytes) -> bytes:
    return bytes(random.Random(0).choices(alphabet, k=size))


def _dissemination(separator: str) -> bytes:
    lines = submission(MAIN.format("")).split("\n")
    return separator.join(lines).encode()


DOCUMENTS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "blanks": lambda: b" \r\n\t" * 10_000,
    "NUL bytes": lambda: bytes(100_000),
    "UTF-16 without a mark": lambda: MAIN.format("").encode("utf-16-le"),
    "NUL bytes in the text": lambda: page("machines\0that break " * 2_000),
    "UTF-16": lambda: MAIN.format("").encode("utf-16"),
    "UTF-8 with a mark": lambda: b"\xef\xbb\xbf" + page(""),
    "Windows-1252": lambda: MAIN.format("\u201cquoted\u201d \u2014 5\u20ac ").encode("cp1252"),
    "Latin-1 with holes of Windows-1252": lambda: page("x").replace(b"x", b"\x81\x8d\xe9 "),
    "UTF-8 and Windows-1252": lambda: page("é — ") + "é — ".encode("cp1252"),
    "another alphabet": lambda: MAIN.format("売上高は百万円です。" * 5_000).encode("shift-jis"),
    "CRLF": lambda: _dissemination("\r\n"),
    "CR alone": lambda: _dissemination("\r"),
    "cut gzip": lambda: gzip.compress(page("x" * 50_000))[:-20],
    "damaged gzip": lambda: gzip.compress(page("y " * 5_000))[:60] + _random(900, bytes(range(256))),
    "gzip bomb": lambda: gzip.compress(bytes(100 << 20), 9),
    "gzip in gzip": lambda: gzip.compress(gzip.compress(page(""))),
    "gzip and more": lambda: gzip.compress(page("")) + b"more",
    "zip": lambda: _zip(page("")),
    "zip bomb attached": lambda: submission(
        MAIN.format(""), after=attachment("ZIP", _uuencoded(_zip(bytes(64 << 20))))
    ).encode(),
    "uuencoding without end": lambda: submission(
        MAIN.format(""), after="<DOCUMENT>\n<TYPE>GRAPHIC\n<TEXT>\nbegin 644 a\n" + "M" * 500_000
    ).encode(),
    "uuencoded main document": lambda: submission(_uuencoded(page(""))).encode(),
    "PDF": lambda: b"%PDF-1.7\n" + _random(200_000, bytes(range(256))),
    "base64 in one line": lambda: text_page(_random(1_000_000, b"ABCDEFabcdef0123456789+/").decode()),
    "cut inside a tag": lambda: submission(MAIN.format("<p>text</p>" * 1_000)).encode()[:9_000] + b"<p sty",
    "header alone": lambda: submission("").split("<DOCUMENT>")[0].encode(),
    "many empty documents": lambda: b"<DOCUMENT>\n<TYPE>" * 60_000,
    "documents without type": lambda: submission(MAIN.format("")).replace("<TYPE>10-K\n", "").encode(),
    "exhibits alone": lambda: submission("An agreement.", after="").replace("<TYPE>10-K", "<TYPE>EX-10.1").encode(),
    "a later 10-something": lambda: submission(
        MAIN.format(""), after=attachment("10-X", "<p>Item 1. Wrong</p>" * 5_000)
    ).encode(),
    "many filers": lambda: submission(
        MAIN.format(""), header="FILER:\n\tCOMPANY DATA:\n\t\tCENTRAL INDEX KEY: 7\n" * 30_000
    ).encode(),
    "a type without end": lambda: b"<DOCUMENT>\n<TYPE>" + b"10-K" * 250_000,
    "PEM without end": lambda: b"-----BEGIN PRIVACY-ENHANCED MESSAGE-----\n" + submission(MAIN.format("")).encode(),
    "documents in a document": lambda: submission(MAIN.format("<DOCUMENT>\n<TYPE>10-K\n<TEXT>\n" * 2_000)).encode(),
    "deep blocks": lambda: page("<div>" * 100_000 + "deep"),
    "deep tables": lambda: page("<table><tr><td>" * 10_000 + "deep"),
    "deep inline tags": lambda: page("<b><i>" * 60_000 + "deep"),
    "cells without end": lambda: page("<table>" + "<tr><td>1,234<td>5" * 60_000),
    "a comment without end": lambda: page("<!--" + "x - " * 250_000),
    "an attribute without end": lambda: page('<p title="' + "Item 2. " * 120_000),
    "a script without end": lambda: page("<script>var a = '" + "Item 2. Properties " * 50_000),
    "scripts and styles": lambda: page("<script>Item 2. Wrong</script><style>Item 3. Wrong {}</style>" * 10_000),
    "a table of 20 MB": lambda: page(_table(165_000)),
    "a row of cells": lambda: page("<table><tr>" + "<td>1,234</td>" * 100_000 + "</tr></table>"),
    "great spans": lambda: page(
        "<table><tr><td colspan=1000000 rowspan=65534>1</td><td colspan='-1'>2</td></tr>"
        "<tr><td colspan=999999999999999999999>3</td></tr></table>" * 300
    ),
    "entity bomb": lambda: submission("<XML>\n" + _laughs().decode() + "\n</XML>", form="4").encode(),
    "entities of other files": lambda: submission("<XML>\n" + _laughs(True).decode() + "\n</XML>", form="4").encode(),
    "entities": lambda: page("&#x41;&amp;amp;&nbsp;" * 50_000),
    "entities of no character": lambda: page("&#99999999999;&#xD800;&#0;&#x110000;&bogus;&" * 20_000),
    "headings that are none": lambda: page("<p>" + "Item " * 200_000 + "</p>"),
    "blanks in a heading": lambda: text_page("I T E M" + " " * 1_000_000 + "2"),
    "headings": lambda: text_page("Item 1.\n" * 60_000),
    "dots": lambda: text_page("Item 1. Business " + "." * 1_000_000 + " 5"),
    "a word of a megabyte": lambda: page("x" * 1_000_000),
    "digits and marks": lambda: text_page("$(1,2.3)%-" * 100_000),
    "attributes": lambda: page("<p " + " ".join(f"a{n}='{n}'" for n in range(60_000)) + ">x</p>"),
    "hidden facts": lambda: page(
        "<ix:header><ix:hidden>" + "<ix:nonNumeric name='dei:x'>hide</ix:nonNumeric>" * 20_000 + "</ix:hidden>"
    ),
    "pages": lambda: text_page("<PAGE>\n   7\n" * 60_000),
    "tables in plain text": lambda: text_page("<TABLE>\n<S> <C>\nSales  1,234\n" * 25_000),
    "less-than signs": lambda: page("<" * 1_000_000),
}


def hostile() -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of each, made one at a time."""
    for number, (name, make) in enumerate(DOCUMENTS.items()):
        yield f"{number:02} {name}.txt", make()
