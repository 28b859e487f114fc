"""JSON Schema of a config model, for editors (`# yaml-language-server: $schema=FILE` atop a config)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) with every field's documentation, default and limits."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | model.model_json_schema() | {"title": "trine config"}
