"""YAML 1.2 text enters; plain values, the line of every path, and what is wrong with the text leave.

Only data is read: no tags, no merge keys, no non-finite numbers. Scalars follow the YAML 1.2 core schema
(`on` and `yes` are text) plus `_` between digits. Aliases are expanded under a bound, so the cost is that of
the scanner: about 2 microseconds a byte, at most half a second for the largest file accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from trine.config.scalars import resolve_scalar, shown
from trine.errors import BadInput

MAX_BYTES = 128 << 10
MAX_DEPTH = 40
MAX_NODES = 10_000
MAX_ALIASES = 200
MAX_SHOWN = 40

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """Something wrong: where (`file:line` or `--option`), at which path, and what."""

    where: str
    path: KeyPath | None
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass
class Document:
    """Plain values of a file, the line (from 1) of each path, and problems that did not stop reading."""

    values: dict[str, Any]
    name: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@dataclass
class _Node:
    """A value of the text; a mapping holds (key, key's line, node) so that nothing is lost."""

    line: int
    scalar: Any = None
    items: list[_Node] | None = None
    pairs: list[tuple[str, int, _Node]] | None = None


class _Stop(Exception):
    """The text cannot be read further."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line, self.text = line, text


def read_yaml(path: Path) -> Document:
    """Read a config file. Raises BadInput (with line) when it cannot be read at all."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except IsADirectoryError:
        raise BadInput(f"{path}: is a folder; expected a YAML file") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    return parse_yaml(data, str(path))


def parse_yaml(data: bytes, name: str) -> Document:
    """Read the bytes of a config; `name` stands in messages. Raises BadInput (with line)."""
    document = Document({}, name)
    try:
        text = _decode(data)
        root = _Composer(text, document).compose()
        if root.pairs is None:
            found = "a list" if root.items is not None else "a single value"
            raise _Stop(root.line, f"the file holds {found}; expected keys, such as `train:`")
        document.values = _Plain(document).convert(root, ())
    except _Stop as stop:
        document.problems.append(Problem(f"{name}:{stop.line}", None, stop.text))
        raise refusal(document.problems) from None
    return document


def refusal(problems: list[Problem]) -> BadInput:
    """The error that names every problem, a line each, in the order of the file; at most 40."""
    lines = list(dict.fromkeys(map(str, problems)))
    if len(lines) > MAX_SHOWN:
        lines[MAX_SHOWN:] = [f"... and {len(lines) - MAX_SHOWN} more"]
    return BadInput("\n".join(lines))


def parse_value(text: str) -> Any:
    """The value of an option: a YAML scalar, or a quoted text, [list] or {mapping}. Raises ValueError."""
    if not text.lstrip().startswith(("[", "{", "'", '"')):
        return resolve_scalar(text) if text else text
    document = Document({}, "")
    try:
        value = _Plain(document).convert(_Composer(text, document).compose(), ())
    except _Stop as stop:
        raise ValueError(stop.text) from None
    if document.problems:
        raise ValueError(document.problems[0].text)
    return value


def _decode(data: bytes) -> str:
    if len(data) > MAX_BYTES:
        raise _Stop(1, f"larger than {MAX_BYTES >> 10} KiB, which no config is; is this the right file?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _Stop(line, f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8") from None
    if found := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise _Stop(line, f"control character U+{ord(found[0]):04X}; a config is plain text")
    return text


_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufffe\uffff]")


class _Composer:
    """Events of the text to nodes; an alias is the same node again."""

    def __init__(self, text: str, document: Document) -> None:
        self.document = document
        self.anchors: dict[str, _Node | None] = {}
        self.aliases = self.nodes = 0
        self.events: Iterator[Any] = YAML(typ="safe", pure=True).parse(text)

    def compose(self) -> _Node:
        try:
            return self._compose()
        except MarkedYAMLError as error:
            raise _explain(error) from None
        except (YAMLError, ValueError) as error:
            raise _Stop(1, str(error).splitlines()[0]) from None

    def _compose(self) -> _Node:
        next(self.events)
        if not isinstance(next(self.events), DocumentStartEvent):
            raise _Stop(1, "the file is empty; expected keys, such as `train:`")
        root = self._node(next(self.events), 0)
        next(self.events)
        if isinstance(another := next(self.events), DocumentStartEvent):
            raise _Stop(another.start_mark.line + 1, "a second document begins here; a config is one document")
        return root

    def _node(self, event: Any, depth: int) -> _Node:
        line = event.start_mark.line + 1
        self.nodes += 1
        if depth > MAX_DEPTH:
            raise _Stop(line, f"nested deeper than {MAX_DEPTH} levels")
        if self.nodes > MAX_NODES:
            raise _Stop(line, f"more than {MAX_NODES} values, which no config has; is this the right file?")
        if isinstance(event, AliasEvent):
            return self._alias(event, line)
        node = _Node(line)
        if event.anchor:
            self.anchors[event.anchor] = None
        if event.tag is not None:
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
            self._problem(line, f"tag {tag} is not allowed; a config is plain data (quote a text instead)")
        if isinstance(event, ScalarEvent):
            node.scalar = self._scalar(event, line)
        elif isinstance(event, SequenceStartEvent):
            node.items = [self._node(one, depth + 1) for one in self._until_end()]
        elif isinstance(event, MappingStartEvent):
            node.pairs = self._pairs(depth)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _until_end(self) -> Iterator[Any]:
        """Events up to the end of the present list or mapping; the consumer takes nested ones itself."""
        while not type(event := next(self.events)).__name__.endswith("EndEvent"):
            yield event

    def _pairs(self, depth: int) -> list[tuple[str, int, _Node]]:
        pairs: list[tuple[str, int, _Node]] = []
        seen: dict[str, int] = {}
        for event in self._until_end():
            key, value = self._node(event, depth + 1), self._node(next(self.events), depth + 1)
            name = key.scalar
            if key.items is not None or key.pairs is not None:
                self._problem(key.line, "a key is a list or a mapping; keys are names")
            elif not isinstance(name, str):
                self._problem(key.line, f"key {shown(name)} is not text; write it in quotes if it is a name")
            elif name == "<<" and event.style is None:
                self._problem(key.line, "merge keys (<<) are not supported; write the keys out")
            elif name in seen:
                first = seen[name]
                self._problem(key.line, f"key '{name}' is given twice (first on line {first}); keep one")
            else:
                seen[name] = key.line
                pairs.append((name, key.line, value))
        return pairs

    def _alias(self, event: Any, line: int) -> _Node:
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            raise _Stop(line, f"more than {MAX_ALIASES} aliases (*name)")
        if event.anchor not in self.anchors:
            raise _Stop(line, f"alias *{event.anchor} has no anchor &{event.anchor} before it")
        node = self.anchors[event.anchor]
        if node is None:
            raise _Stop(line, f"alias *{event.anchor} lies inside the value it stands for")
        return node

    def _scalar(self, event: Any, line: int) -> Any:
        if not event.implicit[0]:
            return event.value
        try:
            return resolve_scalar(event.value)
        except ValueError as error:
            self._problem(line, str(error))
            return None

    def _problem(self, line: int, text: str) -> None:
        self.document.problems.append(Problem(f"{self.document.name}:{line}", None, text))


class _Plain:
    """Nodes to dicts and lists, each alias copied, under a bound on the total."""

    def __init__(self, document: Document) -> None:
        self.document, self.nodes = document, 0

    def convert(self, node: _Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _Stop(node.line, f"aliases expand to more than {MAX_NODES} values or {MAX_DEPTH} levels")
        self.document.lines.setdefault(path, node.line)
        if node.items is not None:
            return [self.convert(one, (*path, i)) for i, one in enumerate(node.items)]
        if node.pairs is not None:
            plain = {}
            for name, line, value in node.pairs:
                self.document.lines[(*path, name)] = line
                plain[name] = self.convert(value, (*path, name))
            return plain
        return node.scalar


def _explain(error: MarkedYAMLError) -> _Stop:
    """A scanner's or parser's error in plain words, at the line where the reader should look."""
    problem, context = error.problem or "not YAML", error.context or ""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    began = error.context_mark.line + 1 if error.context_mark else line
    match (context, problem):
        case (c, p) if "quoted scalar" in c and "end of" in p:
            return _Stop(began, "a quote opened here is never closed")
        case (c, p) if "quoted scalar" in c and "escape" in p:
            return _Stop(line, f"{p.removeprefix('found ')} in double quotes; single quotes take \\ as it is")
        case (c, p) if "flow" in c and p.endswith("'{'"):
            return _Stop(line, "unexpected '{'; inside [ ] or { } a ${name} must stand in quotes")
        case (c, _) if "flow sequence" in c:
            return _Stop(began, "a list opened here with [ is not closed by ] (or a comma is missing)")
        case (c, _) if "flow mapping" in c:
            return _Stop(began, "a mapping opened here with { is not closed by } (or a comma is missing)")
        case (_, p) if "'\\t'" in p:
            return _Stop(line, "a tab where only spaces may stand; indent with spaces")
        case (_, p) if "cannot start any token" in p:
            character = p.split("'")[1] if "'" in p else p
            return _Stop(line, f"a value may not begin with {character}; put it in quotes")
        case (_, p) if "mapping values are not allowed" in p:
            return _Stop(line, "unexpected ':'; the indentation is off, or a text with ': ' needs quotes")
        case (_, p) if p.startswith("expected <block end>"):
            return _Stop(line, "the indentation fits no line above")
        case (_, p) if "could not find expected ':'" in p:
            return _Stop(began, "expected 'key: value'; a ':' is missing")
    return _Stop(line, problem)
