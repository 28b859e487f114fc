"""Documents → items: faults that parsers of filings are known for, each on a small page of its own."""

from __future__ import annotations

import re
import time

import pytest

from trine.data.edgar.document import Item, Parsed, parse_document, text_of

TITLES = {
    "1": "Business", "1A": "Risk Factors", "1B": "Unresolved Staff Comments", "1C": "Cybersecurity", "2": "Properties",
    "3": "Legal Proceedings", "4": "Mine Safety Disclosures", "5": "Market for Registrant’s Common Equity",
    "6": "[Reserved]", "7": "Management’s Discussion and Analysis of Financial Condition and Results of Operations",
    "7A": "Quantitative and Qualitative Disclosures About Market Risk",
    "8": "Financial Statements and Supplementary Data", "9A": "Controls and Procedures",
    "10": "Directors, Executive Officers and Corporate Governance", "11": "Executive Compensation",
    "15": "Exhibits, Financial Statement Schedules",
}  # fmt: skip


def body(item: str, words: int = 300) -> str:
    return " ".join(f"w{item}x{number}" for number in range(words))


def page(*parts: str) -> bytes:
    return f"<html><body>{''.join(parts)}</body></html>".encode()


def section(item: str, heading: str = "") -> str:
    text = heading or f"Item {item}. {TITLES[item]}"
    return f'<p style="font-weight:bold">{text}</p><p>Text of {item}: {body(item)}.</p>'


def contents(items: dict[str, str], pages: bool = True) -> str:
    rows = "".join(
        f"<tr><td>Item {item}.</td><td>{title}</td><td>{number + 3 if pages else ''}</td></tr>"
        for number, (item, title) in enumerate(items.items())
    )
    return f"<p>TABLE OF CONTENTS</p><table>{rows}</table>"


def by_item(parsed: Parsed) -> dict[str, Item]:
    return {f"{one.part}.{one.item}".strip("."): one for one in parsed.items if one.item}


def held(parsed: Parsed, item: str, part: str = "") -> None:
    """The item holds its own text and nobody else's."""
    found = by_item(parsed)[f"{part}.{item}".strip(".")]
    own = [word for word in found.text.split() if word.startswith("w") and "x" in word]
    assert own, found
    assert {word.split("x")[0] for word in own} == {f"w{item}"}, found.text[:200]


def test_every_item_holds_its_own_text() -> None:
    parsed = parse_document(
        page("<p>Cover 2024</p>", contents(TITLES), *map(section, TITLES), "<p>SIGNATURES</p>"), "10-K"
    )
    assert [one.title for one in parsed.items if not one.item] == ["Cover", "Signatures"]
    assert [one.item for one in parsed.items if one.item] == [*TITLES]
    for one in by_item(parsed).values():
        held(parsed, one.item, one.part)
        assert one.confidence > 0.88
        assert not one.warnings or one.item in ("7", "8", "1")
    assert {one.kind for one in parsed.removed} == {"contents row"}


def test_places_are_bytes_of_the_document() -> None:
    data = page("<p>Cov\u00e9r — “q”</p>", *map(section, TITLES))
    parsed = parse_document(data, "10-K")
    for one in parsed.items[1:]:
        assert data[one.byte_start :].decode().startswith(f"Item {one.item}.")
    ends = [one.byte_end for one in parsed.items]
    assert ends == [*[one.byte_start for one in parsed.items[1:]], len(data)]


@pytest.mark.parametrize(
    "heading",
    [
        "ITEM 7A.",
        "Item No. 7A",
        "I T E M  7A.",
        "Item 7(a).",
        "Item&nbsp;7A&#8212;",
        "Item 7A:",
        "ITEM 7A",
        "Item&#160;7&#160;A.",
    ],
)
def test_headings_as_they_are_written(heading: str) -> None:
    parsed = parse_document(page(section("7"), section("7A", f"{heading} {TITLES['7A']}"), section("8")), "10-K")
    held(parsed, "7", "II")
    held(parsed, "7A", "II")


def test_number_and_title_run_together_is_no_new_suffix() -> None:
    """Properties under `Item 2` without a space are item 2, not item 2P."""
    run = "<p><b><span>Item 2</span><span>Properties</span></b></p><p>w2x1 w2x2</p>"
    parsed = parse_document(page(section("1"), run, section("3")), "10-K")
    held(parsed, "2", "I")
    assert set(by_item(parsed)) == {"I.1", "I.2", "I.3"}


def test_combined_headings_are_one_item_and_said() -> None:
    parsed = parse_document(page(section("1", "Items 1 and 2. Business and Properties"), section("3")), "10-K")
    assert "one section for items 1, 2" in by_item(parsed)["I.1"].warnings
    assert "Part I Item 2: in one section with item 1" in parsed.warnings


def test_prose_that_names_a_later_item_cuts_nothing() -> None:
    prose = "<p>Item 7 of this report discusses w1x900.</p><p>See also Item 3, Legal Proceedings.</p>"
    prose += "<p>“Item 8. x” w1x901</p>"
    parsed = parse_document(page(section("1"), prose, section("1A"), section("7"), section("8")), "10-K")
    held(parsed, "1", "I")
    assert "w1x901" in by_item(parsed)["I.1"].text


def test_parts_of_a_quarterly_report_repeat_their_numbers() -> None:
    quarter = [
        ("I", "1", "Financial Statements"), ("I", "2", TITLES["7"]), ("I", "3", TITLES["7A"]), ("I", "4", TITLES["9A"]),
        ("II", "1", "Legal Proceedings"), ("II", "1A", "Risk Factors"), ("II", "6", "Exhibits"),
    ]  # fmt: skip
    parts = [f"<p><b>Item {item}. {title}</b></p><p>w{part}x{item}</p>" for part, item, title in quarter]
    parsed = parse_document(page(*parts, "<p>SIGNATURES</p>"), "10-Q")
    assert {key: one.text.split("\n")[-1] for key, one in by_item(parsed).items()} == {
        f"{part}.{item}": f"w{part}x{item}" for part, item, _ in quarter
    }
    assert "Part II Item 5: not in this filing, neither in a table of contents nor as a heading" in parsed.warnings


def test_legal_proceedings_of_part_two_are_not_management_s_discussion() -> None:
    """Without any heading of Part II, its item 1 is absent; Part I's is not taken for it."""
    parsed = parse_document(
        page(section("1", "Item 1. Financial Statements"), section("2", f"Item 2. {TITLES['7']}")), "10-Q"
    )
    assert set(by_item(parsed)) == {"I.1", "I.2"}
    held(parsed, "2", "I")


def test_a_title_of_another_item_is_believed_and_said() -> None:
    parsed = parse_document(page(section("7"), section("7A", f"Item 7. {TITLES['7A']}"), section("8")), "10-K")
    held(parsed, "7A", "II")
    assert any("its heading says item 7" in one for one in by_item(parsed)["II.7A"].warnings)


def test_current_report_with_its_heading_in_a_table_keeps_its_text() -> None:
    table = "<table><tr><td>Item 5.02</td><td>Departure of Directors or Certain Officers</td></tr></table>"
    parsed = parse_document(
        page(table, "<p>w5x1 resigned.</p>", "<p>Item 9.01 Exhibits</p><p>99.1</p>", "<p>SIGNATURE</p>"), "8-K"
    )
    assert "w5x1 resigned." in by_item(parsed)["5.02"].text
    assert set(by_item(parsed)) == {"5.02", "9.01"}


def test_old_current_report_in_plain_text() -> None:
    text = b"<PAGE>\r\n      FORM 8-K\r\n\r\nITEM 5.  OTHER EVENTS\r\n\r\n     On May 1 a thing\r\nhappened.\r\n\r\n"
    text += (
        b"ITEM 7.  FINANCIAL STATEMENTS AND EXHIBITS\r\n\r\n     None.\r\n\r\n          SIGNATURES\r\n\r\nJ. Doe\r\n"
    )
    parsed = parse_document(text, "8-K")
    assert set(by_item(parsed)) == {"5", "7"}
    assert "a thing" in by_item(parsed)["5"].text
    assert "Doe" not in by_item(parsed)["7"].text


def test_a_cross_reference_index_gives_no_wrong_items() -> None:
    """Items named in an index alone are absent with their pages; the text stays whole, without a name."""
    prose = "".join(f"<p>w0x{number} {body('0')}</p>" for number in range(20))
    parsed = parse_document(page(prose, contents(TITLES)), "10-K")
    assert not by_item(parsed)
    assert "w0x19" in parsed.items[0].text
    assert any(one.startswith("Part II Item 7: listed in the table of contents") for one in parsed.warnings)


def test_contents_without_pages_but_repeated_are_contents() -> None:
    lines = "".join(f"<p>Item {item}. {title}</p>" for item, title in TITLES.items())
    parsed = parse_document(page(lines, *map(section, TITLES)), "10-K")
    for item in TITLES:
        found = [one for one in parsed.items if one.item == item]
        assert len(found) == 1
        held(parsed, item, found[0].part)


def test_what_is_too_long_for_an_item_loses_its_name() -> None:
    parsed = parse_document(
        page(section("8"), "<p><b>Item 9B. Other Information</b></p>", "<p>text of something else</p>" * 9000), "10-K"
    )
    assert "II.9B" not in by_item(parsed)
    assert any(one.startswith("Part II Item 9B: ") for one in parsed.warnings)


def test_hidden_facts_go_and_shown_numbers_stay() -> None:
    facts = "<ix:hidden><ix:nonFraction>987654</ix:nonFraction></ix:hidden>"
    hidden = f'<div style="display:none"><ix:header>{facts}</ix:header></div>'
    shown = '<p>Revenue was <ix:nonFraction id="f-1">1,234</ix:nonFraction> and <span>5</span><span>67</span>.</p>'
    parsed = parse_document(page(hidden, shown), "10-K")
    assert "Revenue was 1,234 and 567." in parsed.items[0].text
    assert "987654" not in parsed.items[0].text
    assert parsed.removed[0].byte_start == page(hidden).index(b"<div")


def test_a_hidden_element_that_never_ends_hides_nothing() -> None:
    parsed = parse_document(b'<p>one</p><div style="display:none"><p>two</p>', "10-K")
    assert "two" in parsed.items[0].text
    assert any("never ends" in one for one in parsed.warnings)


def paged(numbers: int) -> Parsed:
    """Twenty pages with a number and a running head each, `numbers` figures on each."""
    pages = [
        f"<p>Sales were {number * 1000 + 7}. {' '.join(str(one) for one in range(100, 100 + numbers))}.</p>"
        f"<p>{number}</p><hr style='page-break-after:always'/><p>Acme Corporation</p>"
        for number in range(10, 30)
    ]
    return parse_document(page(section("1"), *pages), "10-K")


def test_page_furniture_goes_and_numbers_of_the_text_stay() -> None:
    parsed = paged(100)
    text = by_item(parsed)["I.1"].text
    assert [f"Sales were {number * 1000 + 7}." in text for number in range(10, 30)] == [True] * 20
    assert sorted(one.text for one in parsed.removed if one.kind == "page number") == [str(n) for n in range(10, 30)]
    assert sum(1 for one in parsed.removed if one.kind == "running head") == 20


def test_no_more_numbers_are_removed_than_allowed() -> None:
    """The rest is set apart: not in the items that have a number, and not lost."""
    parsed = paged(8)
    gone = [one.text for one in parsed.removed if one.kind == "page number"]
    apart = next(one for one in parsed.items if one.title == "Furniture").text.split("\n")
    assert sorted(gone + apart) == [str(number) for number in range(10, 30)]
    shown = sum(len(re.findall(r"\d+", one.text)) for one in [*parsed.items, *parsed.removed])
    assert 0 < len(gone) <= 0.015 * shown
    assert "\n\n12\n" not in by_item(parsed)["I.1"].text


def test_figures_of_a_table_are_whole_and_in_columns() -> None:
    cells = "<td>$</td><td>1,234</td><td></td><td>$</td><td>(56</td><td>)</td>"
    table = (
        '<table><tr><td></td><td colspan="3">2024</td><td colspan="3">2023</td></tr>'
        f"<tr><td>Sales</td>{cells}</tr>"
        '<tr><td>Share</td><td colspan="2">12</td><td>%</td><td colspan="2">9</td><td>%</td></tr></table>'
    )
    parsed = parse_document(page(table), "10-K")
    assert parsed.items[0].tables == [
        "|  | 2024 | 2023 |\n| --- | --- | --- |\n| Sales | $1,234 | $(56) |\n| Share | 12% | 9% |"
    ]


def test_encodings_and_line_ends() -> None:
    text = "<p><b>Item 1. Business</b></p>\r\n<p>Caf\u00e9\r\n“fine” — ok</p>"
    for encoding in ("utf-8", "cp1252", "utf-16", "utf-8-sig"):
        parsed = parse_document(text.encode(encoding), "10-K")
        assert "Caf\u00e9 “fine” — ok" in by_item(parsed)["I.1"].text, encoding


def test_unclosed_tags_of_old_pages() -> None:
    old = b"<HTML><BODY><P><B>ITEM 1. BUSINESS</B><P>one<BR>two<TABLE><TR><TD>a<TD>1<TR><TD>b<TD>2</TABLE><P>three"
    parsed = parse_document(old, "10-K405")
    assert by_item(parsed)["I.1"].text == (
        "ITEM 1. BUSINESS\n\none\ntwo\n\n| a | 1 |\n| --- | --- |\n| b | 2 |\n\n\nthree"
    )


@pytest.mark.parametrize(
    "piece",
    ["<div>", "<", "<a b=\"", "<!--", "&amp", "<table><tr><td>", "Item 1. ", "<p>Item 1. Business",
     "<p style='display:none'>", "<![CDATA[", "</div>", "<td>1", "<p>1</p><hr style='page-break-after:always'>",
     "&lol9;", "<span ", "\x00", "<b><p>x</b>"],
)  # fmt: skip
def test_time_is_linear_on_hostile_input(piece: str) -> None:
    data = (piece * (200_000 // len(piece))).encode()
    began = time.process_time()
    parse_document(data, "10-K")
    text_of(data)
    assert time.process_time() - began < 1.5


def test_time_is_linear_in_many_different_headings() -> None:
    data = b"<html>" + b"".join(b"<p>Item %d. Business %d</p>" % (number % 16 + 1, number) for number in range(6000))
    began = time.process_time()
    parse_document(data, "10-K")
    assert time.process_time() - began < 1.5


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 100, b"<html>", b"\xff\xfe", bytes(range(256)) * 40, b"PK\x03\x04" + b"z" * 99]
)
def test_any_bytes_are_read(data: bytes) -> None:
    for form in ("10-K", "10-Q", "8-K", "20-F", "DEF 14A", "S-1", ""):
        parse_document(data, form)
