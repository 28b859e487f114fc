"""The small files of a merged model: the donor's config and tokenizer, the index, and a card that says how it came."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trine import __version__
from trine.merge.chat import FILE, PROCESSORS
from trine.merge.jobs import Plan
from trine.merge.layout import OutputFile
from trine.merge.names import EMBEDDING, HEAD
from trine.merge.tokenizer_file import NAME as TOKENIZER_FILE
from trine.weights.index import INDEX

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
OTHER_FORMS = ("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model")
"""Of a vocabulary that tokenizer.json holds too."""
COPIED = (
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""Files of a model folder beside weights and config, none of them code."""
_TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def write_small_files(plan: Plan, files: list[OutputFile], folder: Path, meta: dict[str, Any]) -> None:
    """Config, tokenizer, index and card into the output folder."""
    donor = plan.models[plan.donor]
    config = output_config(plan)
    if config:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if plan.generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(plan.generation, indent=2) + "\n")
    for name, text in plan.written.items():
        (folder / name).write_text(text, encoding="utf-8")
    replaced = (*OTHER_FORMS, TOKENIZER_FILE) if TOKENIZER_FILE in plan.written else ()
    replaced += (FILE, PROCESSORS) if FILE in plan.written else ()
    kinds = [name for name in TOKENIZER if name not in replaced]
    for source, names in ((plan.tokenizer or donor.folder, kinds), (donor.folder, COPIED)):
        for name in names:
            if (source / name).is_file() and not (folder / name).exists():
                shutil.copyfile(source / name, folder / name)
    if len(files) > 1:
        weight_map = {job.name: file.name for file in files for job, _ in file.places}
        index = {"metadata": {"total_size": plan.write_bytes}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    (folder / "README.md").write_text(_card(plan, meta))


def output_config(plan: Plan) -> dict[str, Any]:
    """The donor's config.json with the output's type, number of layers, and whether head and embedding are tied."""
    config = json.loads(json.dumps(plan.config or plan.models[plan.donor].config))
    if not config:
        return {}
    types = [job.stored for job in plan.jobs if job.stored in _TORCH]
    if types:
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[key] = _TORCH[max(set(types), key=types.count)]
    names = {job.name for job in plan.jobs}
    if any(HEAD.search(name) for name in names) and any(EMBEDDING.search(name) for name in names):
        for section in (config, *(one for one in config.values() if isinstance(one, dict))):
            if section.get("tie_word_embeddings"):
                section["tie_word_embeddings"] = False
    if plan.layers:
        _stack_layers(plan, config)
    return config


def _stack_layers(plan: Plan, config: dict[str, Any]) -> None:
    """The number of layers, and lists with an entry per layer, as the slices give them."""
    for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if key not in config:
            continue
        before = config[key]
        config[key] = len(plan.layers)
        for name, value in list(config.items()):
            if isinstance(value, list) and len(value) == before and "layer" in name:
                sources = [(plan.models[model].config.get(name) or [], layer) for model, layer in plan.layers]
                if all(isinstance(found, list) and layer < len(found) for found, layer in sources):
                    config[name] = [found[layer] for found, layer in sources]


def _card(plan: Plan, meta: dict[str, Any]) -> str:
    """README.md: what was merged, how, and the command and hashes that make it again."""
    models = [f"- `{one}`" + (" (base)" if one == plan.recipe.base else "") for one in plan.models]
    notes = [f"- {note}" for note in meta["notes"]]
    lines = [
        "---",
        "library_name: transformers",
        "tags: [merge, trine]",
        "---",
        "",
        f"# {plan.title or f'A merge by {plan.recipe.method}'}",
        "",
        "Made from",
        "",
        *models,
        "",
        f"Made by trine {__version__}; arithmetic: {meta['numerics']}; seed {meta['seed']}. The SHA-256 of every file "
        "is in `manifest.json`.",
        "",
        "## Recipe",
        "",
        "```yaml",
        plan.recipe.text.rstrip("\n"),
        "```",
        "",
        *how_again(meta["command"], "its paths and the recipe's", sorted(meta["inputs"].items())),
    ]
    return "\n".join(lines + (["## Notes", "", *notes, ""] if notes else []))


def how_again(command: str, paths: str, inputs: Iterable[tuple[str, str]]) -> list[str]:
    """A card's lines on the command that makes its files again, and the SHA-256 of each input by its file."""
    return [
        "## Command",
        "",
        f"Where {paths} lead to the inputs, and there is no output yet, it makes the same files:",
        "",
        f"    {command}",
        "",
        "## Inputs",
        "",
        "| file | SHA-256 |",
        "|---|---|",
        *(f"| `{file}` | `{sha256}` |" for file, sha256 in inputs),
        "",
    ]
