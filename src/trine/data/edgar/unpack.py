"""Bytes of a filing as they come: gzip undone within bounds, kinds told apart, text decoded.

Everything here is linear in the input and looks at a bounded head where it can.
"""

from __future__ import annotations

import re
import zlib
from typing import Literal

from trine.errors import BadInput

Kind = Literal["html", "text", "xml", "binary"]

GZIP = b"\x1f\x8b"
MOST_BYTES = 512 << 20
"""No filing is larger than this, compressed or not."""
_FREE_BYTES, _MOST_RATIO = 64 << 20, 200
_PIECE_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_BINARY_HEADS = {
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\xd0\xcf\x11\xe0": "an old Office file",
    b"\x7fELF": "a program",
    GZIP: "gzip data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"\x1f\x9d": "compress (.Z) data",
    b"\x1f\xa0": "compress (.Z) data",
}
_UUENCODED = re.compile(rb"begin(?:-base64)? [0-7]{3,4} [^\r\n]{1,255}\r?\n")
_HTML_ROOT = re.compile(rb"<(?:!doctype\s{1,8}html|html|xhtml)[\s>]", re.IGNORECASE)
_HTML_TAG = re.compile(rb"<(?:body|div|p|font|br|td|tr|span|center|b|hr|title|head)[\s/>]", re.IGNORECASE)


def unzipped(data: bytes, source: str) -> bytes:
    """`data`, out of gzip where it is gzip. Raises BadInput for damaged data and for more than a filing can hold."""
    if len(data) > MOST_BYTES:
        raise BadInput(f"{source}: {len(data):,} bytes, more than the {MOST_BYTES:,} that a filing may have")
    if not data.startswith(GZIP):
        return data
    bound = min(MOST_BYTES, max(_FREE_BYTES, _MOST_RATIO * len(data)))
    pieces: list[bytes] = []
    size, rest = 0, data
    while rest.startswith(GZIP):
        member = zlib.decompressobj(wbits=31)
        try:
            while not member.eof:
                piece = member.decompress(rest, _PIECE_BYTES)
                rest = member.unconsumed_tail
                size += len(piece)
                if size > bound:
                    raise BadInput(
                        f"{source}: unpacks to more than {bound:,} bytes from {len(data):,}, which no filing does"
                    )
                if not piece and not rest and not member.eof:
                    raise BadInput(f"{source}: the compressed data is cut")
                pieces.append(piece)
        except zlib.error as error:
            raise BadInput(f"{source}: the compressed data is damaged ({error})") from None
        rest = member.unused_data
    return b"".join(pieces)


def why_binary(data: bytes) -> str | None:
    """What a body is when it is no text ("uuencoded data", "a ZIP archive", ...); None for text."""
    head = data[:_HEAD_BYTES].lstrip(b" \t\r\n\xef\xbb\xbf")
    if _UUENCODED.match(head):
        return "uuencoded data"
    for magic, name in _BINARY_HEADS.items():
        if head.startswith(magic):
            return name
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16 text, expected UTF-8, Windows-1252 or Latin-1"
    control = len(head) - len(head.translate(None, bytes(range(9)) + bytes(range(14, 32))))
    return "binary data" if control > len(head) // 10 else None


def kind_of(data: bytes, filename: str = "") -> Kind:
    """What a body is, by its first 64 KB and, where they leave it open, by its file name."""
    if why_binary(data):
        return "binary"
    head = data[:_HEAD_BYTES].lstrip(b" \t\r\n\0\xef\xbb\xbf")
    if _HTML_ROOT.search(head[:4096]):
        return "html"
    if head.startswith(b"<?xml"):
        return "xml"
    if filename.lower().endswith((".htm", ".html")) and b"<" in head:
        return "html"
    tags = sum(1 for _ in zip(range(8), _HTML_TAG.finditer(head), strict=False))
    if tags >= 8 or (tags >= 2 and len(head) < 4096):
        return "html"
    return "xml" if filename.lower().endswith((".xml", ".xsd")) and head.startswith(b"<") else "text"


def decode(data: bytes) -> str:
    """Text from UTF-8, else Windows-1252, else Latin-1, which takes any byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:
        return data.decode("latin-1")
