"""Command-line options onto the values of a config: `--train.steps 200`, `--corpus.sources.0.path=x`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trine.config.scalars import shown
from trine.config.yaml import Problem, parse_value


def split_options(words: Sequence[str]) -> tuple[list[tuple[str, str]], list[Problem]]:
    """`--name value` and `--name=value` to (name, value) pairs, and what is wrong with the words."""
    pairs: list[tuple[str, str]] = []
    problems: list[Problem] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            problems.append(Problem(word, None, "unexpected argument; options are written --name value"))
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                problems.append(Problem(f"--{name}", None, f"needs a value: --{name} VALUE"))
                continue
            value = rest.pop(0)
        if any(name == former for former, _ in pairs):
            problems.append(Problem(f"--{name}", None, "is given twice; keep one"))
        pairs.append((name, value))
    return pairs, problems


def override(values: dict[str, Any], name: str, text: str) -> tuple[str | int, ...]:
    """Set the value at the dotted `name`, making sections on the way. Returns its path; raises ValueError."""
    parts = name.split(".")
    if not all(parts):
        raise ValueError("expected names between dots, such as --train.steps")
    value = parse_value(text)
    here: Any = values
    path: list[str | int] = []
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        key: Any = part
        if isinstance(here, list):
            key = _index(here, part, ".".join(parts[:depth]))
        elif not isinstance(here, dict):
            raise ValueError(f"{'.'.join(parts[:depth])} is {shown(here)}, which has no key '{part}'")
        path.append(key)
        if last:
            here[key] = value
        elif isinstance(here, dict) and here.get(part) is None:
            here[part] = here = {}
        else:
            here = here[key]
    return tuple(path)


def _index(items: list[Any], part: str, name: str) -> int:
    if not part.isdecimal():
        raise ValueError(f"{name} is a list; expected a number from 0 to {len(items) - 1}, got '{part}'")
    if int(part) >= len(items):
        raise ValueError(f"{name} has {len(items)} entries; entry {part} (counted from 0) does not exist")
    return int(part)
