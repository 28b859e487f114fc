"""What a tensor's name says about its place: the stack of layers it belongs to, or before or after all layers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

_LAYER = re.compile(r"^((?:.*?\.)?(?:layers|layer|h|blocks|block)\.)(\d+)(\..+)$")
_AFTER = re.compile(
    r"(^|\.)(lm_head|embed_out|output|score|classifier|norm|norm_f|ln_f|final_norm|final_layernorm|final_layer_norm|"
    r"layer_norm)(\.|$)"
)
_OPTIONAL = re.compile(r"(\.bias|inv_freq|position_ids|lm_head\.weight|embed_out\.weight)$")
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in)\.weight$")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
VOCABULARY = re.compile(
    r"((^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared|backbone\.embeddings)\.weight|"
    r"(^|\.)(lm_head(\.decoder|\.linear)?|embed_out|output_layer|vocab_projector|cls\.predictions(\.decoder)?)"
    r"\.(weight|bias)|^output\.weight)$"
)
"""Tensors with a row per token."""
MODULES = {
    "text_decoder": ("language_model.", "model.language_model."),
    "vision_tower": ("vision_tower.", "visual.", "vision_model.", "model.visual.", "model.vision_tower."),
    "multi_modal_projector": ("multi_modal_projector.", "visual.merger.", "model.visual.merger.", "model.multi_modal_"),
    "vision_model": ("vision_model.",),
    "encoder": ("encoder.", "model.encoder."),
    "decoder": ("decoder.", "model.decoder."),
}
"""What the names of mergekit's modules stand for; any other name is a prefix itself."""


class Place(NamedTuple):
    """`model.layers.3.mlp.up_proj.weight` is ("model.layers.", 3, ".mlp.up_proj.weight")."""

    stack: str
    layer: int
    rest: str


@lru_cache(1 << 17)
def place_of(name: str) -> Place | None:
    """The layer a tensor belongs to, or None when it is before or after all layers."""
    found = _LAYER.match(name)
    return Place(found[1], int(found[2]), found[3]) if found else None


def comes_after(name: str) -> bool:
    """Whether a tensor outside the layers follows them: a final norm or an output head."""
    return bool(_AFTER.search(name))


def may_be_missing(name: str) -> bool:
    """Whether models of one architecture may differ in having this tensor: biases, buffers, an untied head."""
    return bool(_OPTIONAL.search(name))


def layer_counts(names: Iterable[str]) -> dict[str, int]:
    """Layers of each stack."""
    counts: dict[str, int] = {}
    for name in names:
        if place := place_of(name):
            counts[place.stack] = max(counts.get(place.stack, 0), place.layer + 1)
    return counts


def module_of(name: str, modules: Iterable[str]) -> str | None:
    """Which of the named modules a tensor belongs to: the one with the longest matching prefix."""
    best, length = None, -1
    for module in modules:
        for prefix in MODULES.get(module, (f"{module}.", f"model.{module}.")):
            if name.startswith(prefix) and len(prefix) > length:
                best, length = module, len(prefix)
    return best
