"""Filings that are XML data (ownership, 13F, Form D, ...) as lines of text: `name: value` for each element."""

from __future__ import annotations

from lxml import etree

_MOST_LINES = 200_000


def xml_lines(data: bytes) -> list[str]:
    """One line per element that holds text, in order. Entities are not expanded, nothing is loaded from elsewhere."""
    parser = etree.XMLPullParser(
        events=("end",), resolve_entities=False, no_network=True, load_dtd=False, recover=True, remove_comments=True
    )
    lines: list[str] = []
    for at in range(0, len(data), 1 << 16):
        parser.feed(data[at : at + (1 << 16)])
        for _, element in parser.read_events():
            own = [element.text, *(child.tail for child in element if child.tag is etree.Entity)]
            text = " ".join("".join(one for one in own if one).split())
            if isinstance(element.tag, str) and text:
                lines.append(f"{etree.QName(element).localname}: {text}")
            element.clear(keep_tail=False)
            if len(lines) >= _MOST_LINES:
                return lines
    return lines
