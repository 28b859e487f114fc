"""A config file, options and inputs enter; a validated model leaves, or one error listing all that is wrong.

Order: read the file, put `--a.b value` options on top, replace `${NAME}`, validate. Each problem is said with
the line it comes from, or with the option. Cost: a few milliseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from trine.config.explain import dotted, explain
from trine.config.inputs import Inputs, expand
from trine.config.overrides import override, split_options
from trine.config.scalars import resolve_scalar, shown
from trine.config.yaml import Document, KeyPath, Problem, read_yaml, refusal
from trine.manifest import digest_of

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Loaded(Generic[Model]):
    """A config that is valid."""

    config: Model
    resolved: dict[str, Any]
    """Plain values with every default written out and every name replaced; the inputs are left out."""
    hash: str
    """SHA-256 of `resolved`."""
    path: Path | None

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem if self.path else "config"


def load_config(
    model: type[Model],
    path: Path | None,
    options: Sequence[str] = (),
    inputs: Mapping[str, str] | None = None,
    verb_options: Sequence[str] = (),
) -> Loaded[Model]:
    """Load and validate `path` (None: an empty config) as `model`.

    `options` are command-line words (`--a.b`, `value`); one whose name the config declares under `inputs`
    is an input. `verb_options` are names that are neither, for the nearest right name in a message.
    Raises BadInput with one line per problem.
    """
    document = read_yaml(path) if path else Document({}, "options")
    reading = _Reading(document)
    reading.apply(options, dict(inputs or {}))
    values = reading.expanded()
    config = None
    try:
        config = model.model_validate(_tuples(values))
    except ValidationError as error:
        found = error.errors(include_url=False)
        reading.problems += [
            one for one in explain(model, found, values, reading.where, verb_options) if one.path not in reading.blamed
        ]
    if config is None or reading.problems:
        raise refusal(sorted(reading.problems, key=_order))
    resolved = config.model_dump(mode="json", exclude={"inputs"})
    return Loaded(config, resolved, digest_of(resolved), path)


class _Reading:
    """Values on their way to validation, where each came from, and what is wrong so far."""

    def __init__(self, document: Document) -> None:
        self.document, self.values = document, document.values
        self.problems: list[Problem] = list(document.problems)
        self.blamed: set[KeyPath | None] = set()
        self.from_option: dict[KeyPath, str] = {}
        self.inputs = Inputs(None, {})

    def apply(self, words: Sequence[str], given: dict[str, str]) -> None:
        pairs, problems = split_options(words)
        self.problems += problems
        declared = Inputs(self.values.get("inputs"), {}).declared
        for name, text in pairs:
            if name in declared:
                given[name] = text
                continue
            try:
                path = override(self.values, name, text)
            except ValueError as error:
                self.problems.append(Problem(f"--{name}", None, str(error)))
                continue
            self.from_option[path] = f"--{name}"
            lines = self.document.lines
            self.document.lines = {key: n for key, n in lines.items() if key[: len(path)] != path}
        self.inputs = Inputs(self.values.get("inputs"), given)

    def expanded(self) -> dict[str, Any]:
        found = self.inputs.check(self.where)
        self.problems += found
        self.blamed |= {one.path for one in found if one.path}

        def note(path: KeyPath, text: str) -> None:
            self.blamed.add(path)
            if text:
                self.problems.append(Problem(self.where(path), path, f"{dotted(path)}: {text}"))

        return {
            key: one if key == "inputs" else expand(one, self.inputs, (key,), note) for key, one in self.values.items()
        }

    def where(self, path: KeyPath) -> str:
        """The option or the file and line that a path's value comes from."""
        for end in range(len(path), -1, -1):
            if option := self.from_option.get(path[:end]):
                return option
            if line := self.document.lines.get(path[:end]):
                return f"{self.document.name}:{line}"
        return self.document.name


def _order(problem: Problem) -> tuple[bool, int]:
    line = problem.where.rpartition(":")[2]
    return not line.isdecimal(), int(line) if line.isdecimal() else 0


def _tuples(value: Any) -> Any:
    """Lists as tuples: strict models take no list for a tuple, and configs are values."""
    match value:
        case dict():
            return {key: _tuples(one) for key, one in value.items()}
        case list():
            return tuple(_tuples(one) for one in value)
    return value


def to_yaml(resolved: Mapping[str, Any]) -> str:
    """Plain values as YAML that loads back to the same values; the same text in every version."""
    return "".join(_lines(resolved, ""))


def _lines(values: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}:\n", *_lines(value, indent + "  ")]
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            lines.append(f"{indent}{key}:\n")
            for one in value:
                first, *rest = _lines(one, indent + "    ")
                lines += [f"{indent}  - {first.lstrip(' ')}", *rest]
        else:
            lines.append(f"{indent}{key}: {_flow(value)}\n")
    return lines


_PLAIN = re.compile(r"[A-Za-z_./][\w./+-]*( [\w./+-]+)*")
_ESCAPED = re.compile("[\x7f-\xa0\u2028\u2029\ufeff\ufffe\uffff]")


def _flow(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.fullmatch(value) and resolve_scalar(value) == value:
        return value
    text = json.dumps(value.replace("${", "$${"), ensure_ascii=False)
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def read_resolved(path: Path) -> dict[str, Any]:
    """The values of a file that `to_yaml` wrote. Raises BadInput."""
    document = read_yaml(path)
    if document.problems:
        raise refusal(document.problems)
    return _unescaped(document.values)


def _unescaped(value: Any) -> Any:
    match value:
        case dict():
            return {key: _unescaped(one) for key, one in value.items()}
        case list():
            return [_unescaped(one) for one in value]
        case str():
            return value.replace("$${", "${")
    return value


def diff_config(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per dotted key whose value differs: `train.steps: 12, now 13`."""
    before, after = _flat(old, ""), _flat(new, "")
    absent = object()
    lines = []
    for key in dict.fromkeys([*before, *after]):
        was, now = before.get(key, absent), after.get(key, absent)
        if was is absent or now is absent or type(was) is not type(now) or was != now:
            texts = ["not there" if one is absent else shown(one) for one in (was, now)]
            lines.append(f"{key}: {texts[0]}, now {texts[1]}")
    return lines


def _flat(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        items: Any = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)
    else:
        return {path: value}
    flat: dict[str, Any] = {}
    for name, inner in items:
        flat |= _flat(inner, f"{path}.{name}".lstrip("."))
    return flat
