"""tokenizer.json as mappings: which ids its tokens have, without some of them, with more of them.

The file's layout is that of the `tokenizers` library; it is edited as JSON, so that merging needs no more than numpy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.weights.index import read_mapping

NAME = "tokenizer.json"
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json."""

    path: Path
    values: dict[str, Any]
    ids: dict[str, int]
    """Every token's id, in the order of the ids."""

    @property
    def added(self) -> dict[str, dict[str, Any]]:
        """Tokens that are matched before any text is cut, by text."""
        return {one["content"]: one for one in self.values.get("added_tokens") or []}

    @property
    def text(self) -> str:
        """The file's text."""
        return json.dumps(self.values, ensure_ascii=False) + "\n"


def read_tokenizer(folder: Path, needed: str) -> TokenizerFile:
    """The tokenizer of a model folder. Raises BadInput, saying what it is `needed` for, when there is none."""
    path = folder / NAME
    if not path.is_file():
        raise BadInput(f"{folder}: has no {NAME}, which {needed}; save its tokenizer with transformers first")
    values = read_mapping(path)
    return TokenizerFile(path, values, _ids(path, values))


def _ids(path: Path, values: dict[str, Any]) -> dict[str, int]:
    model = values.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    try:
        if isinstance(vocab, list):
            found = {entry[0]: number for number, entry in enumerate(vocab)}
        else:
            found = dict(vocab or {})
        found |= {one["content"]: one["id"] for one in values.get("added_tokens") or []}
        ordered = dict(sorted(found.items(), key=lambda one: one[1]))
    except (KeyError, TypeError, ValueError, IndexError):
        raise BadInput(f"{path}: its tokens cannot be read; expected the file of a fast tokenizer") from None
    if not ordered:
        raise BadInput(f"{path}: holds no token")
    if len(set(ordered.values())) < len(ordered) or not all(type(one) is int and one >= 0 for one in ordered.values()):
        raise BadInput(f"{path}: two tokens have one id, or an id is no number")
    return ordered


def without_rows(tokenizer: TokenizerFile, rows: int) -> TokenizerFile:
    """The tokenizer without added tokens whose id a table of so many rows does not have.

    Raises BadInput when any other token has no row.
    """
    lost = {text for text, number in tokenizer.ids.items() if number >= rows}
    if not lost:
        return tokenizer
    for text in tokenizer.ids:
        if text in lost and text not in tokenizer.added:
            raise BadInput(f"{tokenizer.path}: '{text}' has id {tokenizer.ids[text]}, its model has {rows} rows")
    added = [one for one in tokenizer.values["added_tokens"] if one["content"] not in lost]
    ids = {text: number for text, number in tokenizer.ids.items() if text not in lost}
    return replace(tokenizer, values=tokenizer.values | {"added_tokens": added}, ids=ids)


def with_tokens(
    tokenizer: TokenizerFile, plain: Iterable[str], added: Mapping[str, Mapping[str, Any]]
) -> TokenizerFile:
    """The tokenizer with more tokens at the end: `plain` ones, and `added` ones with their settings.

    A token of `added` that the tokenizer cuts out of text keeps its id and becomes an added one.
    """
    ids, entries, known = dict(tokenizer.ids), [*(tokenizer.values.get("added_tokens") or [])], tokenizer.added
    wanted: dict[str, Mapping[str, Any]] = {text: _PLAIN for text in plain if text not in ids}
    wanted |= {text: one for text, one in added.items() if text not in known}
    following = max(ids.values()) + 1
    for text, settings in wanted.items():
        number = ids.setdefault(text, following)
        following = max(following, number + 1)
        entries.append(_PLAIN | dict(settings) | {"id": number, "content": text})
    entries.sort(key=lambda one: one["id"])
    return replace(tokenizer, values=tokenizer.values | {"added_tokens": entries}, ids=ids)
