"""What each tag of a filing does to the text around it, and what a piece of text between tags says."""

from __future__ import annotations

import codecs
import html
import re
from html.entities import html5

Steps = int | tuple[tuple[int, object], ...]
"""Of a tag: an int is a mask for the bits of bold, a tuple holds steps, each with what it needs."""
_NAME = re.compile(r"</?([a-zA-Z][a-zA-Z0-9:_-]*)")
_ATTRIBUTE = re.compile(r"""([a-zA-Z_:-]+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"']+))""")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});?")
_INVISIBLE = re.compile("[\u200b\u200c\u200d\ufeff\u00ad\u2060]")
_BOLD = re.compile(r"font-weight\s*:\s*(?:bold|[6-9]00)|\bfont\s*:[^;]*\b(?:bold|[6-9]00)\b")
_HIDDEN = re.compile(r"display\s*:\s*none")
_BREAK = re.compile(r"(?:page-)?break-(?:before|after)\s*:\s*(?:always|page|left|right)")
_BLOCKS = frozenset(
    "address article aside blockquote body center caption dd dir div dl dt fieldset figure footer form h1 h2 h3 h4 h5"
    " h6 header hr html legend li main menu nav ol p section thead tbody tfoot title ul".split()
)
RAW = frozenset(("script", "style", "title", "ix:header", "ix:hidden", "noscript", "template"))
_BOLD_TAGS = {"b": 1, "strong": 2, "span": 4, "font": 8, "a": 16, "u": 0}
BLOCK_BOLD = 32
HEADING = 64
MOST_TAGS = 20_000
CELL, CELL_END, BLOCK, BR, ROW, TABLE_OPEN, TABLE_END, LINK, HIDE, BREAK, PRE, PRE_END, ANCHOR, SUP, ON, ODD = range(16)
NOTHING = -1


class _Tags(dict[str, Steps]):
    """A tag as written → what it does: an int is a mask for the bits of bold, a tuple holds steps."""

    def __missing__(self, tag: str) -> Steps:
        named = _NAME.match(tag)
        if named is None:
            return NOTHING
        name = named[1].lower()
        if name.startswith("ix:") and name not in RAW:
            return NOTHING
        if tag[1] == "/":
            found, kept = _closing(name), True
        else:
            found, kept = _opening(name, tag)
        if kept:
            self[tag] = found
        return found


def _closing(name: str) -> Steps:
    if name in _BOLD_TAGS:
        return ~_BOLD_TAGS[name]
    if name in ("td", "th"):
        return ((CELL_END, None),)
    if name == "tr":
        return ((ROW, None),)
    if name == "table":
        return ((TABLE_END, None),)
    if name == "pre":
        return ((PRE_END, None),)
    return ((BLOCK, 0),) if name in _BLOCKS else NOTHING


def _opening(name: str, tag: str) -> tuple[Steps, bool]:
    """What an opening tag does, and whether the same tag may stand again."""
    if tag.count('"') % 2:
        return ((ODD, None),), False
    attributes = {one[1].lower(): one[2] or one[3] or one[4] or "" for one in _ATTRIBUTE.finditer(tag)}
    style = attributes.get("style", "").lower()
    closed = tag.endswith("/>")
    if (name in RAW or _HIDDEN.search(style)) and name not in ("br", "hr", "img", "input"):
        return (NOTHING if closed else ((HIDE, name),)), True
    steps: list[tuple[int, object]] = []
    place = attributes.get("id") or (attributes.get("name") if name == "a" else "")
    if place:
        steps.append((ANCHOR, place))
    bold = bool(_BOLD.search(style))
    if name in ("td", "th"):
        span = attributes.get("colspan", "")
        steps.append((CELL, (min(int(span), 100) if span.isdecimal() and len(span) < 5 else 1, bold or name == "th")))
    elif name == "tr":
        steps.append((ROW, None))
    elif name == "table":
        steps.append((TABLE_OPEN, None))
    elif name == "br":
        steps.append((BR, None))
    elif name == "pre":
        steps.append((PRE, None))
    elif name == "sup":
        steps.append((SUP, None))
    elif name == "page":
        steps.append((BREAK, None))
    elif name in _BLOCKS:
        steps.append((BLOCK, (BLOCK_BOLD if bold else 0) | (HEADING if name[0] == "h" and name[1:].isdecimal() else 0)))
    elif name in _BOLD_TAGS and (bold or name in ("b", "strong")) and not closed:
        steps.append((ON, _BOLD_TAGS[name]))
    link = attributes.get("href", "")
    if name == "a" and link.startswith("#"):
        steps.append((LINK, link[1:]))
    if style and _BREAK.search(style):
        steps.insert(0, (BREAK, None))
    if closed and name in ("td", "th"):
        steps.append((CELL_END, None))
    return (tuple(steps) or NOTHING), not place and not link


TAGS = _Tags()


class _Entities(dict[str, str]):
    """`&name;` → what it stands for; unknown names stay (what a document declares is never expanded)."""

    def __missing__(self, name: str) -> str:
        known = name.startswith("&#") or name[1:] in html5
        found = html.unescape(name) if known else name
        if len(self) < MOST_TAGS:
            self[name] = found
        return found


_ENTITIES = _Entities()


def _windows(error: UnicodeError) -> tuple[str, int]:
    """Bytes that are no UTF-8 are read as Windows-1252, one at a time."""
    assert isinstance(error, UnicodeDecodeError)
    wrong = error.object[error.start : error.end]
    return wrong.decode("cp1252", "replace").replace("\ufffd", " "), error.end


codecs.register_error("trine-windows", _windows)


def text_at(raw: str) -> str:
    """What a piece of the document (one character per byte) says: UTF-8 or Windows-1252, entities still in it."""
    return raw.encode("latin-1").decode("utf-8", "trine-windows") if not raw.isascii() else raw


def plain(raw: str) -> str:
    """`text_at`, entities resolved, spaces made one."""
    if not raw.isascii():
        raw = _INVISIBLE.sub("", text_at(raw))
    if "&" in raw:
        raw = _ENTITY.sub(lambda one: _ENTITIES[one[0]], raw)
        if not raw.isascii():
            raw = _INVISIBLE.sub("", raw)
    return " ".join(raw.split())


def kept_spaces(raw: str) -> str:
    """`text_at`, entities resolved, spaces as they stand."""
    text = _ENTITY.sub(lambda one: _ENTITIES[one[0]], text_at(raw))
    return text.replace("\xa0", " ").expandtabs(8).rstrip()


class _Short(dict[str, str]):
    """Short pieces stand again and again: `&#160;`, `$`, `)`."""

    def __missing__(self, raw: str) -> str:
        found = plain(raw)
        if len(raw) < 16:
            self[raw] = found
        return found


SHORT = _Short()
