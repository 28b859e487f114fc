"""Expert tensors under two names: stacked in memory, one tensor per expert on the Hub.

In memory, as in transformers: `...mlp.experts.gate_up_proj` [E, 2m, d], gate rows first, and
`...mlp.experts.down_proj` [E, d, m]. On the Hub: `...mlp.experts.{e}.{gate,up}_proj.weight` [m, d] and
`...mlp.experts.{e}.down_proj.weight` [d, m]. Every other tensor has one name.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_GATE_UP = ".mlp.experts.gate_up_proj"
_DOWN = ".mlp.experts.down_proj"
_HUB_EXPERT = re.compile(r"^(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight$")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")


class Part(NamedTuple):
    """A Hub tensor and where it lies in the in-memory tensor."""

    name: str
    shape: tuple[int, ...]
    place: tuple[int | slice, ...]
    """`memory[place]` is the Hub tensor; empty when it is the whole tensor."""


def is_stacked(name: str) -> bool:
    """Whether `name` is an in-memory tensor of stacked experts."""
    return name.endswith((_GATE_UP, _DOWN))


def hub_parts(name: str, shape: tuple[int, ...]) -> list[Part]:
    """The Hub tensors that an in-memory tensor consists of, expert by expert."""
    if name.endswith(_DOWN):
        stem = name.removesuffix(".down_proj")
        return [Part(f"{stem}.{e}.down_proj.weight", shape[1:], (e,)) for e in range(shape[0])]
    if not name.endswith(_GATE_UP):
        return [Part(name, shape, ())]
    stem, half = name.removesuffix(".gate_up_proj"), shape[1] // 2
    parts = []
    for e in range(shape[0]):
        parts.append(Part(f"{stem}.{e}.gate_proj.weight", (half, shape[2]), (e, slice(0, half))))
        parts.append(Part(f"{stem}.{e}.up_proj.weight", (half, shape[2]), (e, slice(half, 2 * half))))
    return parts


class Parsed(NamedTuple):
    """What a tensor name says: `model.layers.3.mlp.experts.7.up_proj.weight` is (3, 'mlp.experts.up_proj', 7)."""

    layer: int | None
    kind: str
    expert: int | None


def parse(name: str) -> Parsed:
    """Layer, kind (the name without layer, expert number and `.weight`) and expert of a Hub or in-memory name."""
    layer, rest = None, name
    if found := _LAYER.search(name):
        layer, rest = int(found[1]), found[2]
    expert = None
    if match := _HUB_EXPERT.match(name):
        expert = int(match[2])
        rest = rest.replace(f".experts.{expert}.", ".experts.")
    return Parsed(layer, rest.removesuffix(".weight"), expert)
