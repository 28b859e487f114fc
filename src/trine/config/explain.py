"""Pydantic's errors to plain sentences: where, which key, what was found and what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from trine.config.scalars import shown
from trine.config.yaml import KeyPath, Problem
from trine.errors import nearest

TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "finite_number": "a finite number",
}
LIMITS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


def explain(
    model: type[BaseModel],
    errors: Sequence[Any],
    values: Any,
    where: Callable[[KeyPath], str],
    options: Sequence[str] = (),
) -> list[Problem]:
    """One problem per wrong path. `errors` are pydantic's, `values` what was validated, `options` the
    option names that are no config keys (for the nearest right name)."""
    expected: dict[KeyPath, list[str]] = {}
    problems = []
    listed: set[KeyPath] = set()
    for error in errors:
        path = _data_path(error["loc"], values)
        match error["type"]:
            case "extra_forbidden" if len(path) == 1 and where(path).startswith("--"):
                text = _no_option(model, str(path[-1]), options)
            case "extra_forbidden":
                text = _unknown(model, path, with_keys=path[:-1] not in listed)
                listed.add(path[:-1])
            case "too_short" if len(_value(values, path)) >= error["ctx"]["min_length"]:
                continue
            case "missing" if isinstance(path[-1], str):
                text = f"{dotted(path)}: missing{_about(model, path)}"
            case "value_error":
                path, text = _consistency(path, str(error["ctx"]["error"]), values)
            case _:
                expected.setdefault(path, []).append(_expected(model, path, error))
                continue
        problems.append(Problem(where(path), path, text))
    for path, wants in expected.items():
        if wants[0].startswith("!"):
            text = f"{dotted(path)}: {wants[0][1:]}"
        else:
            wanted = " or ".join(dict.fromkeys(wants))
            text = f"{dotted(path)}: got {shown(_value(values, path))}, expected {wanted}"
        problems.append(Problem(where(path), path, text))
    return problems


def dotted(path: KeyPath) -> str:
    """A path as it is written in an option."""
    return ".".join(map(str, path)) or "config"


def _value(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[part]
    return values


def _data_path(location: Sequence[str | int], values: Any) -> KeyPath:
    """The part of pydantic's location that is in the data (or is the key missing there)."""
    path: list[str | int] = []
    for part in location:
        if isinstance(values, dict):
            path.append(part)
            values = values.get(part)
        elif isinstance(values, list | tuple) and isinstance(part, int):
            path.append(part)
            values = values[part] if part < len(values) else None
        else:
            break
    return tuple(path)


def _expected(model: type[BaseModel], path: KeyPath, error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in LIMITS:
        words, key = LIMITS[kind]
        return f"{words} {context[key]:g}"
    match kind:
        case "string_type" if isinstance(error["input"], bool | int | float):
            return "text; put it in quotes"
        case "literal_error":
            choices = re.findall(r"'([^']*)'", context["expected"])
            return f"one of {', '.join(choices)}{nearest(str(error['input']), choices)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            inner = _model_at(model, path)
            return "a section" + (f" with keys {', '.join(inner.model_fields)}" if inner else "")
        case "too_short":
            return f"at least {_entries(context['min_length'])}"
        case "too_long":
            return f"at most {_entries(context['max_length'])}"
        case "missing":
            return f"!missing; the list needs at least {_entries(int(path[-1]) + 1)}"
        case "string_too_short":
            return f"text of at least {context['min_length']} character(s)"
        case "string_too_long":
            return f"text of at most {context['max_length']} characters"
        case "string_pattern_mismatch":
            return f"text of the form {context['pattern'].strip('^$')}"
    return TYPES.get(kind) or f"otherwise: {error['msg']}"


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _about(model: type[BaseModel], path: KeyPath) -> str:
    inner = _model_at(model, path[:-1])
    field = inner.model_fields.get(str(path[-1])) if inner else None
    text = field.description if field else None
    return f"; expected: {' '.join(text.split()).rstrip('.')}" if text else "; it has no default"


def _consistency(path: KeyPath, text: str, values: Any) -> tuple[KeyPath, str]:
    """A section's own check: blame the key that its message begins with, when there is one."""
    first, _, rest = text.partition(" ")
    named = (*path, *first.split("."))
    if _present(values, named):
        return named, f"{dotted(named)} {rest}"
    return path, f"{dotted(path)}: {text}" if path else text


def _present(values: Any, path: KeyPath) -> bool:
    for part in path:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _no_option(model: type[BaseModel], key: str, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, [*options, *model.model_fields], n=1)
    hint = f"; did you mean '--{close[0]}'?" if close else _elsewhere(model, key)
    return f"no such option, input or section{hint}"


def _unknown(model: type[BaseModel], path: KeyPath, with_keys: bool) -> str:
    key, section = str(path[-1]), path[:-1]
    inner = _model_at(model, section)
    keys = list(inner.model_fields) if inner else []
    near = nearest(key, keys)
    if not difflib.get_close_matches(key, keys, n=1, cutoff=0.8):
        near = _elsewhere(model, key) or near
    name = f"keys of {dotted(section)}" if section else "sections"
    allowed = f" ({name}: {', '.join(keys)})" if with_keys else ""
    return f"{dotted(path)}: unknown key{near}{allowed}"


def _elsewhere(model: type[BaseModel], key: str) -> str:
    places = list(dict.fromkeys(_places(model, key, "")))[:4]
    return f"; `{key}` belongs under {' or '.join(places)}" if places else ""


def _places(model: type[BaseModel], key: str, path: str) -> Iterator[str]:
    """Dotted sections that have a field `key`."""
    for name, field in model.model_fields.items():
        if name == key:
            yield path or "the top level"
        if inner := _model_in(field.annotation):
            yield from _places(inner, key, f"{path}.{name}".lstrip("."))


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((inner for one in get_args(annotation) if (inner := _model_in(one))), None)


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model of the section at `path`."""
    here: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str):
            field = here.model_fields.get(part) if here else None
            here = _model_in(field.annotation) if field else None
    return here
