"""`${NAME}` in the texts of a config: recipe inputs, then the environment; `$${` stands for a plain `${`.

Enters: plain values and the inputs given as options. Leaves: the values with every name replaced, and a
problem for each name that has no value.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trine.config.base import Frozen
from trine.config.scalars import resolve_scalar, shown
from trine.config.yaml import KeyPath, Problem
from trine.errors import nearest


class InputConfig(Frozen):
    """A named value of a recipe; `--NAME VALUE` of `trine run` sets it, `${NAME}` in the file uses it."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    kind: Literal["path", "text", "integer", "number"] = "path"
    """path: must exist when given."""
    default: str | int | float | None = None
    """Used when the option is not given; without a default the input must be given."""
    help: str = ""


class _Unset(Exception):
    """A name without a value, or with one of the wrong kind."""


class _Said(_Unset):
    """The same, about an input that `Inputs.check` has complained of already."""


_NAME = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Inputs:
    """The declared inputs of a config and the values given for them."""

    def __init__(self, declared: Any, given: Mapping[str, str]) -> None:
        entries = declared if isinstance(declared, list) else []
        self.declared = {
            one["name"]: (i, one)
            for i, one in enumerate(entries)
            if isinstance(one, dict) and isinstance(one.get("name"), str)
        }
        self.given = dict(given)
        self.wrong: set[str] = set()

    def check(self, where: Callable[[KeyPath], str]) -> list[Problem]:
        """What is wrong with the given inputs, and which required ones are not given."""
        problems: list[Problem] = []

        def say(name: str, place: str, path: KeyPath | None, text: str) -> None:
            self.wrong.add(name)
            problems.append(Problem(place, path, text))

        for name in self.given:
            try:
                self._given(name)
            except _Unset as error:
                say(name, f"--{name}", None, str(error))
        for name, (i, entry) in self.declared.items():
            path: KeyPath = ("inputs", i)
            default = entry.get("default")
            if name not in self.given and default is None:
                about = f" ({entry['help']})" if entry.get("help") else ""
                say(name, where(path), path, f"input '{name}' is not given: add --{name} VALUE{about}")
            elif default is not None and not (isinstance(default, str) and "${" in default):
                try:
                    _typed(name, entry.get("kind", "path"), default)
                except _Unset as error:
                    path = (*path, "default")
                    say(name, where(path), path, f"inputs.{i}.default: {error}")
        return problems

    def value(self, name: str) -> Any:
        """The value that stands for `${name}`. Raises _Unset."""
        if name in self.wrong:
            raise _Said
        if name in self.given:
            return self._given(name)
        if name not in self.declared:
            return _environment(name, self.declared)
        entry = self.declared[name][1]
        default = entry["default"]
        if isinstance(default, str):
            default = substitute(default, lambda inner: _environment(inner, {}))
        return _typed(name, entry.get("kind", "path"), default)

    def _given(self, name: str) -> Any:
        if name not in self.declared:
            raise _Unset(f"the config declares no such input{nearest(name, self.declared)}")
        kind, text = self.declared[name][1].get("kind", "path"), self.given[name]
        if kind == "path" and not path_exists(text):
            raise _Unset(f"no such file or folder: '{text}'")
        return _typed(name, kind, text)


def _environment(name: str, declared: Mapping[str, Any]) -> str:
    if name in os.environ:
        return os.environ[name]
    close = nearest(name, declared) or nearest(name, os.environ)
    raise _Unset(
        f"${{{name}}} has no value: neither an input nor an environment variable has this name"
        f"{close or f'; set it with: export {name}=VALUE'}"
    )


def _typed(name: str, kind: Any, value: Any) -> Any:
    if kind in ("path", "text"):
        return value if isinstance(value, str) else str(value)
    try:
        number = resolve_scalar(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, float) and number.is_integer() and kind == "integer":
        number = int(number)
    wanted = int if kind == "integer" else int | float
    if isinstance(number, bool) or not isinstance(number, wanted):
        expected = "a whole number" if kind == "integer" else "a number"
        raise _Unset(f"input '{name}': got {shown(value)}, expected {expected}")
    return number


def path_exists(text: str) -> bool:
    """Whether a source path names something: a builtin, a file, a folder, or a glob with a match."""
    if text.startswith("builtin:") or Path(text).expanduser().exists():
        return True
    return glob.has_magic(text) and next(glob.iglob(text, recursive=True), None) is not None


def substitute(text: str, value: Callable[[str], Any]) -> Any:
    """`text` with its names replaced; a text that is one name alone takes the value's type."""

    def replace(match: re.Match[str]) -> str:
        return "${" if match[1] is None else str(_named(match, value))

    whole = _NAME.fullmatch(text)
    if whole is not None and whole[1] is not None:
        return _named(whole, value)
    return _NAME.sub(replace, text)


def _named(match: re.Match[str], value: Callable[[str], Any]) -> Any:
    if not match[2]:
        raise _Unset("a ${ is not closed by }; write $${ for a plain ${")
    if not _IDENTIFIER.fullmatch(match[1]):
        raise _Unset(f"'{match[0]}' is not a name; write $${{ for a plain ${{")
    return value(match[1])


def expand(values: Any, inputs: Inputs, path: KeyPath, note: Callable[[KeyPath, str], None]) -> Any:
    """`values` with every text below `path` expanded; `note(path, text)` receives each problem (an empty
    text: a problem named already)."""
    match values:
        case dict():
            return {key: expand(one, inputs, (*path, key), note) for key, one in values.items()}
        case list():
            return [expand(one, inputs, (*path, i), note) for i, one in enumerate(values)]
        case str():
            try:
                done = substitute(values, inputs.value)
                if isinstance(done, str):
                    done.encode()
                return done
            except _Unset as error:
                note(path, str(error))
            except UnicodeEncodeError:
                note(path, f"got {shown(values.encode(errors='replace').decode())}, expected text in UTF-8")
    return values
