"""Filings that are XML data (ownership, 13F, Form D, ...) as lines of text: `name: value` for each element."""

from __future__ import annotations

from xml.etree.ElementTree import Element, ParseError, XMLPullParser

_MOST_LINES = 200_000
_PIECE_BYTES = 1 << 16


def xml_lines(data: bytes) -> tuple[list[str], str | None]:
    """A line per element that holds text, in the order of their ends; why the reading stopped early, if it did.

    Entities of other files are not loaded, and the parser (expat) bounds what entities may grow to.
    """
    parser = XMLPullParser(events=("end",))
    lines: list[str] = []
    try:
        for at in range(0, len(data), _PIECE_BYTES):
            parser.feed(data[at : at + _PIECE_BYTES])
            for event in parser.read_events():
                element = event[-1]
                assert isinstance(element, Element)
                own = "".join([element.text or "", *(child.tail or "" for child in element)])
                if text := " ".join(own.split()):
                    lines.append(f"{element.tag.rpartition('}')[2]}: {text}")
                del element[:]
                if len(lines) >= _MOST_LINES:
                    return lines, f"only the first {_MOST_LINES:,} lines are given"
        parser.close()
    except (ParseError, ValueError) as error:
        return lines, f"the XML cannot be read to its end ({error})"
    return lines, None
