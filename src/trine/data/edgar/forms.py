"""Which items each form has: part, number, the titles it went by, and how long its text may be.

The closed list is a check: a heading that names anything else is no heading of that form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

SECTIONS = (
    "notice of annual meeting", "proxy statement summary", "proxy summary", "general information",
    "questions and answers", "corporate governance", "board of directors", "election of directors",
    "director compensation", "executive officers", "executive compensation", "compensation discussion and analysis",
    "compensation committee report", "summary compensation table", "grants of plan based awards",
    "outstanding equity awards", "pension benefits", "nonqualified deferred compensation",
    "potential payments upon termination", "pay ratio", "ceo pay ratio", "pay versus performance",
    "equity compensation plan information", "security ownership", "stock ownership", "beneficial ownership",
    "section 16", "delinquent section 16", "audit committee report", "report of the audit committee",
    "ratification of", "advisory vote", "certain relationships", "related person transactions",
    "related party transactions", "shareholder proposals", "stockholder proposals", "other matters", "other business",
    "householding", "additional information", "annual report on form",
)  # fmt: skip
"""Beginnings of the headings of a proxy statement."""
_SMALL = re.compile(r"\b(?:and|of|the|in|to|a|an|by|for|on|or|with|about|from|at|our|its|s|that|upon)\b")
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Known:
    """An item of a form."""

    part: str
    item: str
    titles: tuple[str, ...]
    """In lower case, the words that carry meaning decide."""
    most: int
    """Characters beyond which what follows its heading is not this item."""
    custom: bool = False
    """Not among the form's items, but many companies have it."""

    @property
    def name(self) -> str:
        """As a reader knows it."""
        return f"{'Part ' + self.part + ' ' if self.part else ''}Item {self.item}"


_LONG, _MIDDLE, _SHORT = 4_000_000, 150_000, 15_000
_RESERVED = "reserved"
_10K = """
I|1|business;description business|L
I|1A|risk factors|L
I|1B|unresolved staff comments|S
I|1C|cybersecurity|M
I|2|properties;property;description property|M
I|3|legal proceedings|M
I|4|mine safety disclosures;submission matters vote security holders;removed reserved;reserved|M
I|4A|executive officers registrant;information executive officers;executive officers|O
II|5|market registrant common equity related stockholder matters issuer purchases equity securities;
    market common stock related matters;market price|M
II|6|selected financial data;selected consolidated financial data;reserved;removed reserved|M
II|7|management discussion analysis financial condition results operations;management discussion analysis|L
II|7A|quantitative qualitative disclosures market risk;quantitative qualitative market risk|M
II|8|financial statements supplementary data;consolidated financial statements|L
II|9|changes disagreements accountants accounting financial disclosure|S
II|9A|controls procedures|M
II|9B|other information|S
II|9C|disclosure foreign jurisdictions prevent inspections|S
III|10|directors executive officers corporate governance;directors executive officers registrant;directors officers|L
III|11|executive compensation|L
III|12|security ownership certain beneficial owners management related stockholder matters;security ownership|M
III|13|certain relationships related transactions director independence;certain relationships related party|M
III|14|principal accountant fees services;principal accounting fees services;controls procedures|M
IV|15|exhibits financial statement schedules;exhibits financial statements schedules reports form;exhibit|L
IV|16|form k summary;summary;principal accountant fees services;principal accounting fees services|S
"""
_10KSB = """
I|1|description business;business|L
I|2|description property;properties|M
I|3|legal proceedings|M
I|4|submission matters vote security holders;reserved;removed reserved|M
II|5|market common equity related stockholder matters;market common stock|M
II|6|management discussion analysis plan operation;plan operation;management discussion analysis|L
II|7|financial statements|L
II|8|changes disagreements accountants accounting financial disclosure|S
II|8A|controls procedures|M
II|8B|other information|S
III|9|directors executive officers promoters control persons;directors executive officers|L
III|10|executive compensation|L
III|11|security ownership certain beneficial owners management|M
III|12|certain relationships related transactions|M
III|13|exhibits reports form;exhibits|L
III|14|principal accountant fees services;controls procedures|M
"""
_10Q = """
I|1|financial statements;consolidated financial statements;interim financial statements|L
I|2|management discussion analysis financial condition results operations;management discussion analysis;
    plan operation|L
I|3|quantitative qualitative disclosures market risk;quantitative qualitative market risk|M
I|4|controls procedures|M
II|1|legal proceedings|M
II|1A|risk factors|L
II|2|unregistered sales equity securities use proceeds;issuer purchases equity securities;changes securities;
    purchases equity securities|M
II|3|defaults senior securities|S
II|4|mine safety disclosures;submission matters vote security holders;removed reserved;reserved|M
II|5|other information|M
II|6|exhibits;exhibits reports form|M
"""
_20F = """
I|1|identity directors senior management advisers|M
I|2|offer statistics expected timetable|S
I|3|key information|L
I|4|information company|L
I|4A|unresolved staff comments|S
I|5|operating financial review prospects|L
I|6|directors senior management employees|L
I|7|major shareholders related party transactions|M
I|8|financial information|L
I|9|offer listing|M
I|10|additional information|L
I|11|quantitative qualitative disclosures market risk|M
I|12|description securities other than equity securities|M
II|13|defaults dividend arrearages delinquencies|S
II|14|material modifications rights security holders use proceeds|M
II|15|controls procedures|M
II|16|reserved|S
II|16A|audit committee financial expert|S
II|16B|code ethics|S
II|16C|principal accountant fees services|S
II|16D|exemptions listing standards audit committees|S
II|16E|purchases equity securities issuer affiliated purchasers|S
II|16F|change registrant certifying accountant|S
II|16G|corporate governance|M
II|16H|mine safety disclosure|S
II|16I|disclosure foreign jurisdictions prevent inspections|S
II|16J|insider trading policies|S
II|16K|cybersecurity|M
III|17|financial statements|L
III|18|financial statements|L
III|19|exhibits|L
"""
_8K = """
|1.01|entry material definitive agreement|L
|1.02|termination material definitive agreement|L
|1.03|bankruptcy receivership|L
|1.04|mine safety reporting shutdowns patterns violations|L
|1.05|material cybersecurity incidents|L
|2.01|completion acquisition disposition assets|L
|2.02|results operations financial condition|L
|2.03|creation direct financial obligation obligation off balance sheet arrangement registrant|L
|2.04|triggering events accelerate increase direct financial obligation|L
|2.05|costs associated exit disposal activities|L
|2.06|material impairments|L
|3.01|notice delisting failure satisfy continued listing rule standard transfer listing|L
|3.02|unregistered sales equity securities|L
|3.03|material modification rights security holders|L
|4.01|changes registrant certifying accountant|L
|4.02|non reliance previously issued financial statements related audit report|L
|5.01|changes control registrant|L
|5.02|departure directors certain officers election directors appointment certain officers compensatory arrangements|L
|5.03|amendments articles incorporation bylaws change fiscal year|L
|5.04|temporary suspension trading under registrant employee benefit plans|L
|5.05|amendments registrant code ethics waiver provision code ethics|L
|5.06|change shell company status|L
|5.07|submission matters vote security holders|L
|5.08|shareholder director nominations|L
|6.01|abs informational computational material|L
|6.02|change servicer trustee|L
|6.03|change credit enhancement other external support|L
|6.04|failure make required distribution|L
|6.05|securities act updating disclosure|L
|6.06|static pool|L
|7.01|regulation fd disclosure|L
|8.01|other events|L
|9.01|financial statements exhibits;exhibits|L
"""
_OLD_8K = """
|1|changes control registrant|L
|2|acquisition disposition assets|L
|3|bankruptcy receivership|L
|4|changes registrant certifying accountant|L
|5|other events;other materially important events;other events regulation fd disclosure|L
|6|resignations registrant directors|L
|7|financial statements exhibits;financial statements pro forma financial information exhibits;exhibits|L
|8|change fiscal year|L
|9|regulation fd disclosure;sales equity securities regulation|L
|10|amendments registrant code ethics|L
|11|temporary suspension trading under registrant employee benefit plans|L
|12|results operations financial condition;disclosure results operations|L
"""
_LISTS = {"10-K": _10K, "10-KSB": _10KSB, "10-Q": _10Q, "20-F": _20F, "8-K": _8K + _OLD_8K}
_SAME = {
    "10-K405": "10-K",
    "10-KT": "10-K",
    "10-K405T": "10-K",
    "10-KSB40": "10-KSB",
    "10-QT": "10-Q",
    "10-QSB": "10-Q",
}
_SIZES = {"L": _LONG, "M": _MIDDLE, "O": _MIDDLE, "S": _SHORT}


def family(form: str) -> str:
    """The form whose items `form` has: amendments and variants have those of the plain one; '' for other forms."""
    plain = form.strip().upper().removesuffix("/A")
    plain = _SAME.get(plain, plain)
    return plain if plain in _LISTS else ""


@cache
def known_items(form: str) -> tuple[Known, ...]:
    """The items of a `family`, in the order in which they stand."""
    found = []
    for row in _LISTS[form].replace(";\n    ", ";").strip().split("\n"):
        if row:
            part, item, titles, size = row.split("|")
            found.append(Known(part, item, tuple(titles.split(";")), _SIZES[size], size == "O"))
    return tuple(found)


def words(text: str) -> list[str]:
    """The words of a heading that carry meaning, in lower case."""
    lower = text.lower().replace("’", "'").replace("'s", "").replace("s'", "s")
    return _WORD.findall(_SMALL.sub(" ", lower))


def likeness(known: Known, heading: list[str]) -> float:
    """How much of the item's title stands at the beginning of a heading's words: 0 to 1.

    The longest of the titles that fits well decides, so a short title inside a longer heading counts in full only when
    the heading begins with it.
    """
    best = 0.0
    for title in known.titles:
        wanted = title.split()
        given = heading[: len(wanted) + 3]
        if not given:
            continue
        hits = sum(1 for word in wanted if word in given)
        if len(wanted) == 1:
            hits = int(wanted[0] == given[0] or (len(given) > 1 and wanted[0] == given[1]))
        share = hits / min(len(wanted), max(3, len(heading)))
        led = given[0] in wanted or (len(given) > 1 and given[1] in wanted)
        best = max(best, share if led else share * 0.6)
    return best
