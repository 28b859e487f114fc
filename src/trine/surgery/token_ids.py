"""config.json and generation_config.json of a model that gets another tokenizer: every id of a token in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from trine.errors import BadInput
from trine.merge.models import Model
from trine.surgery.vocabulary import Matching, Vocabulary
from trine.weights.index import read_mapping

_OWN = ("bos", "eos", "pad", "unk")
"""Roles whose ids are the donor's; any other id is that of the same token."""


def output_config(model: Model, donor: Model, old: Vocabulary, new: Vocabulary, matching: Matching) -> dict[str, Any]:
    """The model's config with the donor's size of vocabulary and ids of special tokens.

    Raises BadInput when it names a token, of an image say, that the donor's tokenizer does not have.
    """
    if not model.config:
        raise BadInput(f"{model.folder / 'config.json'}: missing; expected a Hugging Face model folder")
    config = json.loads(json.dumps(model.config))
    own = own_ids(donor, new)
    targets = {source: number for number, source in reversed(matching.sources.items())}
    for section in _sections(config):
        if "vocab_size" in section or section is config:
            section["vocab_size"] = new.size
        for key, value in section.items():
            if key.removesuffix("_token_id") in _OWN and key.endswith("_token_id"):
                section[key] = own.get(key)
            elif key.endswith(("_token_id", "_token_index")) and isinstance(value, int):
                if value not in targets:
                    what = f"{key} {value} ('{old.by_id.get(value, '?')}')"
                    raise BadInput(f"{model.folder / 'config.json'}: {what} is no token of {new.folder}'s tokenizer")
                section[key] = targets[value]
    return config | {key: value for key, value in own.items() if key != "unk_token_id"}


def _sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield config
    for value in config.values():
        if isinstance(value, dict):
            yield value


def own_ids(donor: Model, vocabulary: Vocabulary) -> dict[str, Any]:
    """Ids of bos, eos, pad and unk as the donor's config says, else as its tokenizer does."""
    text = donor.config.get("text_config") or {}
    found = {}
    for role in _OWN:
        key = f"{role}_token_id"
        value = donor.config.get(key, text.get(key))
        value = vocabulary.roles.get(role) if value is None else value
        if value is not None:
            found[key] = value
    return found


def output_generation(model: Model, donor: Model, config: dict[str, Any]) -> dict[str, Any] | None:
    """The model's generation_config.json with the donor's ids of bos, eos and pad; None when the model has none."""
    path, other = (one.folder / "generation_config.json" for one in (model, donor))
    if not path.is_file():
        return None
    theirs = read_mapping(other) if other.is_file() else {}
    values = dict(read_mapping(path))
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = theirs.get(key, config.get(key))
        values.pop(key, None)
        if value is not None:
            values[key] = value
    return values
