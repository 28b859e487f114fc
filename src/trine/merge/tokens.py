"""The output's tokenizer, and the models' vocabularies brought to it, by `tokenizer_source` or `tokenizer`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trine.errors import BadInput, nearest
from trine.merge.chat import SETTINGS, chosen_template, template_files
from trine.merge.config import ModelReference, Tokenizer, TokenSource
from trine.merge.dtypes import Array
from trine.merge.jobs import Plan
from trine.merge.models import Model, folder_of
from trine.merge.names import EMBEDDING
from trine.merge.plan import make_plan
from trine.merge.reading import Recipe
from trine.merge.tokenizer_file import NAME, TokenizerFile, read_tokenizer, with_tokens, without_rows
from trine.merge.vocabulary import Chosen, Vocabulary
from trine.weights.index import read_mapping

Models = dict[ModelReference, Model]


@dataclass(frozen=True)
class _Output:
    """The tokenizer of the result."""

    source: Path
    """The folder whose other files it has."""
    file: TokenizerFile
    vocabulary: Vocabulary
    notes: list[str]


def plan_merge(recipe: Recipe, models: Models) -> Plan:
    """The plan of a recipe, with its tokenizer. Raises BadInput as `make_plan` does, and for tokens without a row."""
    output = None if recipe.tokenizer is None else _output(recipe, recipe.tokenizer, models)
    plan = make_plan(recipe, models, output.vocabulary if output else None)
    if output is not None:
        plan.tokenizer = output.source
        plan.written[NAME] = output.file.text
        plan.notes += output.notes
        config, plan.generation = _configs(plan.models[plan.donor].folder, output)
        plan.config = config or None
    if recipe.chat_template is not None:
        _set_template(plan, recipe.chat_template)
    return plan


def _set_template(plan: Plan, setting: str) -> None:
    template = chosen_template(setting, [model.folder for model in plan.models.values()])
    folder = plan.tokenizer or plan.models[plan.donor].folder
    if template is None:
        plan.notes.append("chat_template: no model has one")
    elif not (folder / SETTINGS).is_file():
        plan.notes.append(f"chat_template: '{folder}' has no {SETTINGS}, so the template is not written")
    else:
        plan.written |= template_files(template, folder)


def _output(recipe: Recipe, setting: Tokenizer, models: Models) -> _Output:
    base = recipe.base or recipe.models[0]
    needed = "tokenizer_source needs of every model"
    notes: list[str] = []
    files, counts = {}, {one: _rows(model) for one, model in models.items()}
    for one, model in models.items():
        files[one] = read_tokenizer(model.folder, needed)
        kept = without_rows(files[one], counts[one])
        if lost := len(files[one].ids) - len(kept.ids):
            notes.append(f"tokenizer of '{one}': {lost} added token(s) without a row left out")
        files[one] = kept
    source = base if isinstance(setting.source, str) else setting.source
    file = files[source] if source in files else read_tokenizer(folder_of(source.model), "tokenizer_source names")
    if setting.source == "union":
        file = _union(file, files)
    file = with_tokens(file, setting.tokens or {}, {})
    texts = {number: text for text, number in file.ids.items()}
    vocabulary = Vocabulary(
        texts,
        _padded(max(texts) + 1, setting.pad_to_multiple_of),
        {one: np.array([], np.int64) for one in models},
        dict(_chosen(setting, file, files, counts)),
    )
    for one in models:
        vocabulary.own[one] = _own(vocabulary, files[one])
    if new := [text for text, number in file.ids.items() if _nowhere(vocabulary, number)]:
        notes.append(f"tokenizer: no model has {len(new)} token(s), such as '{new[0]}'; their rows are zeros")
    folder = models[source].folder if source in models else folder_of(source.model)
    return _Output(folder, file, vocabulary, notes)


def _rows(model: Model) -> int:
    """Rows of a model's embedding."""
    found = [info.shape[0] for name, info in model.tensors.items() if EMBEDDING.search(name) and info.shape]
    if not found:
        raise BadInput(f"{model.folder}: no tensor named like a token embedding, which tokenizer_source needs")
    return min(found)


def _union(base: TokenizerFile, files: dict[ModelReference, TokenizerFile]) -> TokenizerFile:
    """The base's tokenizer with what only others have: their plain tokens, then their added ones, by id."""
    added: dict[str, dict[str, Any]] = {}
    for one in files.values():
        added |= {text: entry for text, entry in one.added.items() if text not in added}
    plain = (text for one in files.values() for text in one.ids if text not in added)
    return with_tokens(base, plain, added)


def _padded(count: int, multiple: int | None) -> int:
    return -(-count // multiple) * multiple if multiple else count


def _own(vocabulary: Vocabulary, file: TokenizerFile) -> Array:
    own = np.full(vocabulary.count, -1, np.int64)
    for number, text in vocabulary.texts.items():
        own[number] = file.ids.get(text, -1)
    return own


def _nowhere(vocabulary: Vocabulary, number: int) -> bool:
    return number not in vocabulary.chosen and all(own[number] < 0 for own in vocabulary.own.values())


def _chosen(
    setting: Tokenizer,
    output: TokenizerFile,
    files: dict[ModelReference, TokenizerFile],
    counts: dict[ModelReference, int],
) -> Iterator[tuple[int, Chosen]]:
    for text, one in (setting.tokens or {}).items():
        if one.source is not None:
            row = _row(text, one.source, files, counts)
            yield output.ids[text], Chosen(one.source.model, row, one.force)


def _row(
    text: str, source: TokenSource, files: dict[ModelReference, TokenizerFile], counts: dict[ModelReference, int]
) -> int:
    """The row of the source's model."""
    where = f"tokenizer.tokens: '{text}'"
    if source.model is None:
        return 0
    if source.model not in files:
        raise BadInput(f"{where}: '{source.model}' is not one of the models merged")
    if source.token_id is not None:
        if source.token_id >= counts[source.model]:
            raise BadInput(f"{where}: row {source.token_id} of '{source.model}', which has {counts[source.model]}")
        return source.token_id
    wanted, ids = source.token or text, files[source.model].ids
    if wanted not in ids:
        raise BadInput(f"{where}: '{source.model}' has no token '{wanted}'{nearest(wanted, list(ids))}")
    return ids[wanted]


def _configs(donor: Path, output: _Output) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """config.json and generation_config.json of the donor with the output's rows and ids of special tokens."""
    path, other = donor / "config.json", donor / "generation_config.json"
    config = read_mapping(path) if path.is_file() else {}
    generation = read_mapping(other) if other.is_file() else None
    for section in (config, *(one for one in config.values() if isinstance(one, dict))):
        if "vocab_size" in section:
            section["vocab_size"] = output.vocabulary.count
    if output.source != donor:
        _take_ids(config, generation, output.source)
    return config, generation


def _take_ids(config: dict[str, Any], generation: dict[str, Any] | None, source: Path) -> None:
    """Ids of bos, eos and pad as the model that the tokenizer comes from has them."""
    theirs = [source / "config.json", source / "generation_config.json"]
    first, second = (read_mapping(one) if one.is_file() else {} for one in theirs)
    for section, own in ((config, first), (generation, {**first, **second})):
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if section is not None and key in own:
                section[key] = own[key]
