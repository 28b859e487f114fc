"""The config reference as Markdown, made from the models: one table per section, in file order."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


def markdown(model: type[BaseModel]) -> str:
    """A heading, the section's purpose and a table of its fields for `model` and every model below it."""
    parts = [
        "# Config reference\n",
        "Made by `trine schema --markdown`. Every field is also an option: `--section.field value`.\n",
    ]
    parts += _sections(model, "")
    return "\n".join(parts)


def _sections(model: type[BaseModel], path: str) -> list[str]:
    title = f"## `{path}`" if path else "## Sections"
    lines = [
        title,
        "",
        (model.__doc__ or "").strip(),
        "",
        "| field | type | default | |",
        "|---|---|---|---|",
    ]
    below: list[str] = []
    for name, field in model.model_fields.items():
        text = " ".join((field.description or "").split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {_type(field.annotation)} | {_default(field)} | {text}{_limits(field)} |")
        for inner in _models(field.annotation):
            many = "[]" if get_origin(field.annotation) is tuple else ""
            below += _sections(inner, f"{path}.{name}{many}".lstrip("."))
    return ["\n".join(lines) + "\n", *below]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for one in get_args(annotation) for model in _models(one)]


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(one) for one in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is typing.Annotated:
        return _type(arguments[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {"int": "integer", "float": "number", "str": "text", "bool": "true or false"}
    return names.get(getattr(annotation, "__name__", ""), str(annotation))


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "see below"
    return "none" if field.default is None else f"`{field.default}`".replace("|", "\\|")


def _limits(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(one, key)}"
        for one in field.metadata
        for key, sign in signs.items()
        if getattr(one, key, None) is not None
    ]
    return f" ({', '.join(found)})" if found else ""
