"""A scan's file to what its page shows: cells of layers and types, each matrix's figures, what shares would cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.spectrum.choose import GRADIENT_BYTES, STATE_BYTES, Options, choose
from trine.spectrum.scanned import Scanned, read_scan

TOPS = (5.0, 10.0, 25.0, 50.0, 75.0, 100.0)


def overview(path: Path) -> dict[str, Any]:
    """JSON-able. `cells` hold indices into `modules`, `shares` indices into `cells`. BadInput for other files."""
    scanned = read_scan(path)
    if scanned.published:
        raise BadInput(f"{path}: a published scan holds neither shapes nor histograms to show; scan the model again")
    record = json.loads(path.read_bytes())
    meta, modules = record["meta"], record["modules"]
    if len(meta.get("largest", ())) != len(modules):
        raise BadInput(f"{path}: gives no largest singular values; it is of an older trine, scan the model again")
    cells: dict[tuple[str, int | None], list[int]] = {}
    for number, one in enumerate(scanned.entries):
        cells.setdefault((one.type, one.layer), []).append(number)
    return {
        "meta": {name: value for name, value in meta.items() if name not in ("largest", "not_matrices")},
        "modules": [
            {
                "name": entry.name,
                "layer": entry.layer,
                "expert": entry.expert,
                "largest": largest,
                **modules[entry.name],
            }
            for entry, largest in zip(scanned.entries, meta["largest"], strict=True)
        ],
        "cells": [{"type": kind, "layer": layer, "members": members} for (kind, layer), members in cells.items()],
        "shares": _shares(scanned, list(cells)),
    }


def _shares(scanned: Scanned, cells: list[tuple[str, int | None]]) -> list[dict[str, Any]]:
    """What each `--top` would train, ties broken by order; nothing where no matrix can be ranked."""
    places = {cell: number for number, cell in enumerate(cells)}
    whole = sum(one.parameters or 0 for one in scanned.entries)
    found = []
    for top in TOPS:
        try:
            entries = choose(scanned, Options(top=top, ties="order", unscored="freeze")).entries
        except BadInput:
            return []
        parameters = sum(one.parameters or 0 for one in entries)
        found.append(
            {
                "top": top,
                "matrices": len(entries),
                "parameters": parameters,
                "of_parameters": parameters / whole,
                "gradient_bytes": parameters * GRADIENT_BYTES,
                "state_bytes": parameters * STATE_BYTES,
                "lowest_layer": min((one.layer for one in entries if one.layer is not None), default=None),
                "cells": sorted({places[one.type, one.layer] for one in entries}),
            }
        )
    return found
