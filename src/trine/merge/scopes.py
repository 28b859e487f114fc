"""Which value a parameter has at a tensor: scopes from narrow to wide, filters on names, gradients over layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from trine.config.scalars import shown
from trine.config.yaml import KeyPath
from trine.errors import nearest
from trine.merge.catalog import Parameter, Spec

Scope = dict[str, Any] | None
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_TRUTH = {"true": True, "false": False}


def is_fixed(scope: Scope) -> bool:
    """Whether no setting depends on the tensor: no filter, no gradient."""
    return not any(isinstance(setting, dict | list | tuple) for setting in (scope or {}).values())


def lookup(
    parameters: dict[str, Parameter], scopes: Sequence[Scope], tensor: str, position: float
) -> dict[str, float | bool | None]:
    """The value of each parameter for a tensor at `position` (0 first layer, 1 last) of its slice.

    `scopes` go from the narrowest to the widest; the first that holds a value for the tensor gives it, else the
    default does. None for a required parameter that no scope gives.
    """
    return {name: _first(name, parameter, scopes, tensor, position) for name, parameter in parameters.items()}


def _first(name: str, parameter: Parameter, scopes: Sequence[Scope], tensor: str, position: float) -> Any:
    for scope in scopes:
        value = _at((scope or {}).get(name), tensor, position)
        if value is not None:
            return _converted(value, parameter)
    return parameter.default


def _at(setting: Any, tensor: str, position: float) -> Any:
    match setting:
        case {"value": value}:
            wanted = setting.get("filter")
            return _at(value, tensor, position) if wanted in (None, "*") or wanted in tensor else None
        case [{}, *_]:
            found = (_at(one, tensor, position) for one in setting)
            return next((value for value in found if value is not None), None)
        case [*values]:
            return _gradient(values, position)
    return setting


def _gradient(values: Sequence[Any], position: float) -> Any:
    """Piecewise linear through `values`; steps where they are no numbers."""
    last = len(values) - 1
    if any(isinstance(one, bool | str) for one in values) or not last:
        return values[int(position * last)]
    left = min(int(position * last), last - 1)
    share = position * last - left
    return (1 - share) * values[left] + share * values[left + 1]


def _converted(value: Any, parameter: Parameter) -> float | bool:
    if isinstance(value, str):
        value = _TRUTH.get(value.lower(), value)
    match parameter.kind:
        case "switch":
            return bool(float(value))
        case "count":
            return int(float(value))
    return float(value)


def problems(scope: Scope, spec: Spec, method: str, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with a `parameters` section found at `path`: unknown names, values of a wrong form."""
    for name, setting in (scope or {}).items():
        here = (*path, name)
        if name not in spec.names:
            allowed = ", ".join(spec.names) or "no parameters"
            yield here, f"unknown parameter of {method}{nearest(name, spec.names)} ({method} takes {allowed})"
            continue
        parameter = (
            spec.inputs.get(name) or spec.shared.get(name) or Parameter("switch" if "mask" in name else "number")
        )
        yield from _wrong(setting, parameter, here, nested=False)


def _wrong(setting: Any, parameter: Parameter, path: KeyPath, nested: bool) -> Iterator[tuple[KeyPath, str]]:
    match setting:
        case dict() if not nested:
            for key in setting:
                if key not in ("value", "filter"):
                    yield (*path, key), f"unknown key{nearest(key, ['value', 'filter'])} (keys: value, filter)"
            if setting.get("value") is None:
                yield path, "value: missing; expected {value: ..., filter: part of a tensor's name}"
            elif not isinstance(setting.get("filter"), str | None):
                yield (*path, "filter"), f"got {shown(setting['filter'])}, expected part of a tensor's name"
            else:
                yield from _wrong(setting["value"], parameter, (*path, "value"), nested=True)
        case []:
            yield path, "an empty list; expected at least one value"
        case [dict(), *_] if not nested:
            for number, one in enumerate(setting):
                if isinstance(one, dict):
                    yield from _wrong(one, parameter, (*path, number), nested=False)
                else:
                    yield (
                        (*path, number),
                        f"got {shown(one)}, expected {{value: ..., filter: ...}} like the entries before",
                    )
        case [*values]:
            for number, one in enumerate(values):
                if text := _wrong_scalar(one, parameter):
                    yield (*path, number), text
        case _:
            if text := _wrong_scalar(setting, parameter):
                yield path, text


def _wrong_scalar(value: Any, parameter: Parameter) -> str | None:
    """None when `value` can be this parameter. Texts that are numbers pass: YAML 1.1 reads 1e-5 as text."""
    number = isinstance(value, int | float) or (isinstance(value, str) and bool(_NUMBER.fullmatch(value)))
    truth = isinstance(value, bool) or (isinstance(value, str) and value.lower() in _TRUTH)
    match parameter.kind:
        case "switch" if truth or number:
            return None
        case "switch":
            return f"got {shown(value)}, expected true or false"
        case "count" if number and not truth and float(value).is_integer() and float(value) >= 0:
            return None
        case "count":
            return f"got {shown(value)}, expected a whole number"
        case _ if number and not isinstance(value, bool):
            return None
    return f"got {shown(value)}, expected a number"
