"""The one record of the text stages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from trine.data.words import Words, words_of


@dataclass(frozen=True)
class Document:
    """A text and where it came from."""

    text: str
    path: str
    """File, with `:line` or `#row` where a file holds several documents."""
    messages: str | None = None
    """Of a conversation: its messages as JSON; `text` is what they say, one after the other."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """What the source keeps beside the text, such as company and date of a filing."""

    def key(self, source: str) -> bytes:
        """Sixteen bytes that name the document by its source and place."""
        return hashlib.blake2b(f"{source}\0{self.path}".encode(), digest_size=16).digest()

    @cached_property
    def words(self) -> Words:
        """The text's words as hashes."""
        return words_of(self.text)

    def with_text(self, text: str) -> Document:
        """The same document, saying `text`."""
        return replace(self, text=text)

    def digest(self) -> bytes:
        """SHA-256 of the text, or of a conversation's messages, as UTF-8."""
        return hashlib.sha256((self.messages or self.text).encode()).digest()


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be used: no text or conversation is in it."""

    path: str
    """As in `Document`."""
    reason: str


@dataclass(frozen=True)
class Dropped:
    """What a step hands back in place of a document that is to be left out."""

    reason: str
    """One of a few, counted in the ledger."""
    detail: str = ""
    """Of this document alone: what was found, or which document it repeats."""


@dataclass(frozen=True)
class Unwanted:
    """A record that its source's own settings leave out."""

    path: str
    reason: str


def cut(document: Document, max_bytes: int) -> Iterator[Document]:
    """`document` in pieces of at most `max_bytes` bytes of UTF-8, cut after a line end where there is one."""
    data = document.text.encode()
    if len(data) <= max_bytes:
        yield document
        return
    begin = 0
    while begin < len(data):
        end = begin + max_bytes
        if end < len(data):
            while data[end] & 0xC0 == 0x80:
                end -= 1
            end = data.rfind(b"\n", begin, end) + 1 or end
        yield replace(document, text=data[begin:end].decode(), path=f"{document.path}@{begin}")
        begin = end


def why_no_text(text: str) -> str | None:
    """Why a string from JSON cannot be stored as UTF-8, to follow its name; None where it can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds half of a surrogate pair, which is no text"
    return None
