"""A choice to a file: trine's, axolotl's, or a plain list; and the published procedure's own choice and file."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from trine.errors import BadInput
from trine.spectrum.choose import BYTES_PER_PARAMETER, Chosen, Options
from trine.spectrum.scanned import Entry, Scanned

Format = Literal["trine", "axolotl", "plain"]
_ALWAYS = ("lm_head", "model.embed_tokens")


def choose_published(scanned: Scanned, top: float) -> Chosen:
    """As the published procedure: int(n * top / 100) per type, the file's order among equals, embeddings and head in.

    The entries are in the order of that procedure's file. Raises BadInput for NaN.
    """
    types: dict[str, list[Entry]] = {}
    for one in scanned.entries:
        if math.isnan(one.snr):
            raise BadInput(f"{scanned.path}: '{one.name}' has no SNR ({one.why or 'NaN'}) and cannot be ranked")
        types.setdefault(one.type, []).append(one)
    entries = [one for one in scanned.entries if one.type in _ALWAYS]
    notes = ["embeddings and head are trained whatever their SNR"]
    for kind, group in types.items():
        if kind in _ALWAYS:
            continue
        count = int(len(group) * top / 100)
        ranked = sorted(group, key=lambda one: -one.snr)
        entries += ranked[:count]
        if 0 < count < len(ranked) and ranked[count - 1].snr == ranked[count].snr:
            equal = sum(one.snr == ranked[count].snr for one in ranked)
            notes.append(f"{kind}: {equal} of {len(ranked)} have SNR {ranked[count].snr}; the file's order decides")
        elif any(math.isinf(one.snr) for one in ranked):
            notes.append(f"{kind}: {sum(math.isinf(one.snr) for one in ranked)} of {len(ranked)} have SNR inf")
        if count == 0:
            notes.append(f"{kind}: {top:g} % of {len(group)} is none")
    return Chosen(tuple(entries), tuple(notes))


def published_text(scanned: Scanned, chosen: Chosen) -> str:
    """The published procedure's file, byte for byte."""
    names = [one for one in chosen.entries if one.type not in _ALWAYS]
    lines = ["unfrozen_parameters:", *(f"- ^{name}.weight$" for name in _ALWAYS)]
    for kind in dict.fromkeys(one.type for one in scanned.entries):
        lines.append(f"# {kind} layers")
        lines += [f"- {one.name.removesuffix('.weight')}" for one in names if one.type == kind]
    return "\n".join(lines) + "\n"


def text(scanned: Scanned, chosen: Chosen, format: Format, options: Options | None) -> str:
    """The choice as a file; `options` None: chosen by the published rule."""
    match format:
        case "plain":
            return "".join(f"{one.name}\n" for one in chosen.entries)
        case "axolotl" if options is None:
            return published_text(scanned, chosen)
        case "axolotl":
            stored = dict.fromkeys(one.stored for one in chosen.entries)
            return "unfrozen_parameters:\n" + "".join(f"- ^{re.escape(name)}$\n" for name in stored)
        case "trine":
            return _own(scanned, chosen, options)


def whole_tensors(scanned: Scanned, chosen: Chosen) -> str | None:
    """What to tell where axolotl's file, which names tensors, trains more than was chosen."""
    stored, taken = {one.stored for one in chosen.entries}, {one.name for one in chosen.entries}
    more = [one for one in scanned.entries if one.stored in stored and one.name not in taken]
    if not more:
        return None
    return f"axolotl trains whole tensors: {len(more):,} matrices that share one with a chosen matrix are trained too"


def summary(scanned: Scanned, chosen: Chosen) -> dict[str, object]:
    """Counts, for people and programs."""
    layers = [one.layer for one in chosen.entries if one.layer is not None]
    parameters = sum(one.parameters or 0 for one in chosen.entries)
    return {
        "matrices": len(chosen.entries),
        "of_matrices": len(scanned.entries),
        "parameters": None if scanned.published else parameters,
        "of_parameters": None if scanned.published else sum(one.parameters or 0 for one in scanned.entries),
        "bytes_to_train": None if scanned.published else parameters * BYTES_PER_PARAMETER,
        "lowest_layer": min(layers, default=None),
        "by_type": dict(Counter(re.sub(r"experts\.\d+\.", "experts.", one.type) for one in chosen.entries)),
    }


def _own(scanned: Scanned, chosen: Chosen, options: Options | None) -> str:
    how = {"rule": "published"} if options is None else asdict(options)
    head = {"format": "trine-selection-1", "model": scanned.model, "measure": scanned.measure, **how}
    lines = [f"{key}: {json.dumps(value)}" for key, value in (head | summary(scanned, chosen)).items()]
    return "\n".join([*lines, "train:", *_listed(chosen.entries)]) + "\n"


def _listed(entries: Sequence[Entry]) -> list[str]:
    return [f"- {one.name}" for one in entries]
