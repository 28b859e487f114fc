"""Which tokenizer the output has. Models with one vocabulary need no alignment; others are refused."""

from __future__ import annotations

from dataclasses import replace

from trine.errors import BadInput
from trine.manifest import sha256_file
from trine.merge.plan import Plan

_TEMPLATES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def with_tokenizer(plan: Plan) -> Plan:
    """The plan, its donor the model that `tokenizer_source` names. Raises BadInput where vocabularies differ."""
    tokenizer = plan.recipe.tokenizer
    if plan.recipe.chat_template not in (None, "auto"):
        raise BadInput("chat_template: only `auto` is supported, which keeps the donor's")
    if tokenizer is None:
        return plan
    if tokenizer.tokens or tokenizer.pad_to_multiple_of:
        raise BadInput("tokenizer: tokens and pad_to_multiple_of need aligned vocabularies, which are not supported")
    kinds: dict[tuple[str, ...], str] = {}
    for reference, model in plan.models.items():
        files = [model.folder / name for name in _TEMPLATES if (model.folder / name).is_file()]
        kinds.setdefault(tuple(sha256_file(file) for file in files), str(reference))
    if len(kinds) > 1:
        raise BadInput(
            f"tokenizer: {' and '.join(repr(one) for one in kinds.values())} have different tokenizers, and aligning "
            "vocabularies is not supported; leave the tokenizer out when the same ids mean the same tokens"
        )
    match tokenizer.source:
        case "union" | "base":
            return plan
        case source if source in plan.models:
            return replace(plan, donor=source)
        case source:
            raise BadInput(f"tokenizer: '{source}' is not one of the models merged; name one of these, or base")
