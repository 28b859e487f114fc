"""Real filings, where they are on disk: what they show is kept, and their items are found."""

from __future__ import annotations

import gzip
import os
import re
from collections import Counter
from pathlib import Path

import pytest
from lxml import html

from trine.data.edgar.document import parse_document
from trine.data.edgar.headings import heading_of

FILINGS = Path(os.environ.get("TRINE_DATA", "/nowhere")) / "filings"
pytestmark = pytest.mark.skipif(not FILINGS.exists(), reason="no filings on disk")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
ANNUAL = "1 1A 1B 1C 2 3 4 5 6 7 7A 8 9 9A 9B 9C 10 11 12 13 14 15 16".split()
INLINE = frozenset("a b em font i small span strong sub u".split())
HIDDEN = "//*[self::script or self::style or self::head or contains(translate(@style, ' ', ''), 'display:none')]"


def read(name: str) -> bytes:
    path = next(FILINGS.glob(f"html/**/{name}*"))
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


@pytest.mark.parametrize("name", ["aapl-10-k", "wfc-10-k", "nvda-10-q", "0001062993-21-003193", "BuckleInc.8-K.EX99"])
def test_shown_numbers_are_kept(name: str) -> None:
    """Of the numbers in lxml's text, without hidden elements and furniture, 99.5 % and more stand in the items."""
    data = read(name)
    parsed = parse_document(data, "10-Q" if "10-q" in name else "20-F" if "0001062993" in name else "10-K")
    root = html.document_fromstring(data, parser=html.HTMLParser(encoding="utf-8", huge_tree=True))
    for hidden in root.xpath(HIDDEN):
        hidden.drop_tree()
    for node in root.iter():
        if isinstance(node.tag, str) and node.tag not in INLINE and not node.tag.startswith("ix:"):
            node.text, node.tail = " " + (node.text or ""), " " + (node.tail or "")
    shown = Counter(NUMBER.findall(root.text_content()))
    ours = Counter(NUMBER.findall("\n".join(one.text for one in parsed.items)))
    furniture = Counter(NUMBER.findall("\n".join(one.text for one in parsed.removed if "hidden" not in one.kind)))
    wanted = shown - furniture
    assert (wanted & ours).total() >= 0.995 * wanted.total()
    assert furniture.total() <= 0.015 * shown.total()


@pytest.mark.parametrize("name", ["aapl-10-k", "ma-10-k", "wfc-10-k", "ibm-10-k"])
def test_annual_reports_have_every_item_with_its_own_heading(name: str) -> None:
    parsed = parse_document(read(name), "10-K")
    found = [one for one in parsed.items if one.item]
    assert [one.item for one in found] == ANNUAL
    for one in found:
        heading = heading_of(one.text)
        assert heading is not None
        assert one.item in heading.items
        assert one.confidence > 0.85, (one.item, one.confidence)


def test_absent_items_of_a_quarterly_report_are_explained() -> None:
    parsed = parse_document(read("nvda-10-q"), "10-Q")
    keys = {(one.part, one.item) for one in parsed.items if one.item}
    assert ("II", "1A") in keys
    assert ("II", "3") not in keys
    assert any(one.startswith("Part II Item 3: ") for one in parsed.warnings)
