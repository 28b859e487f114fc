"""The page of a scan: SNR over layers and types of matrices, each matrix's spectrum, what shares of them would cost."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trine.manifest import write_file
from trine.report.page import render_page

_MEANINGS = {
    "calibrated": (
        "SNR: the sum of the singular values above the noise edge over the sum of those below. No dimension; "
        "a matrix of pure noise has 0.",
        "Noise edge: fitted to this matrix by the law of Marchenko and Pastur; the largest value of pure noise "
        "passes it in one matrix of a thousand. The line over the histogram is that law.",
    ),
    "published": (
        "SNR and noise edge as in the procedure of the published scans: the edge lies too low, noise counts as signal, "
        "and the SNR changes with the matrix's scale. For comparison.",
    ),
}
_SHARED = (
    "Signal share: the part of the sum of squares that lies above the edge. Rank: how many singular values do.",
    "Experts of a layer and kind share a cell, which shows their mean; they are chosen as one.",
    "Cost: what training adds to the weights, gradients in bf16, master weights and AdamW's two moments in fp32. "
    "Embeddings and head are not chosen; equal SNRs in the order of the file.",
)


def write_scan(found: dict[str, Any], name: str, out: Path) -> Path:
    """Write the page of a scan's overview (`trine.spectrum.overview`) to `out`, whole or not at all; returns `out`."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, render_page(name, ("page.css", "scan.css"), ("charts.js", "scan.js"), scan_content(found, name)))
    return out


def scan_content(found: dict[str, Any], name: str) -> dict[str, Any]:
    """What the page shows, as JSON: the matrices as columns, their names as patterns with `{l}` and `{e}`."""
    modules, meta = found["modules"], found["meta"]
    patterns, shapes = _Numbered(), _Numbered()
    columns: dict[str, Any] = {
        "pattern": [patterns.of(_pattern(one)) for one in modules],
        "shape": [shapes.of(tuple(one["shape"])) for one in modules],
    }
    columns |= {key: [one[key] for one in modules] for key in ("layer", "expert", "rank")}
    columns |= {key: [_short(one[key]) for one in modules] for key in ("snr", "sigma", "edge", "share", "largest")}
    columns["histogram"] = [_packed(one["histogram"] or ()) for one in modules]
    problems = meta["problems"]
    return {
        "name": name,
        "model": meta["model"],
        "measure": meta["measure"],
        "tiles": _tiles(found),
        "patterns": list(patterns.numbers),
        "shapes": [list(one) for one in shapes.numbers],
        "columns": columns,
        "cells": found["cells"],
        "shares": found["shares"],
        "problems": {number: problems[one["name"]] for number, one in enumerate(modules) if one["name"] in problems},
        "meanings": [*_MEANINGS[meta["measure"]], *_SHARED],
    }


class _Numbered:
    """Values numbered in the order in which they came."""

    def __init__(self) -> None:
        self.numbers: dict[Any, int] = {}

    def of(self, value: Any) -> int:
        return self.numbers.setdefault(value, len(self.numbers))


def _pattern(module: dict[str, Any]) -> str:
    """The name with its layer and expert left open, where it is its own name again when they are put in."""
    name, layer, expert = module["name"], module["layer"], module["expert"]
    pattern = name
    if expert is not None:
        pattern = pattern.replace(f"experts.{expert}.", "experts.{e}.")
    if layer is not None:
        pattern = re.sub(rf"\.{layer}\.", ".{l}.", f".{pattern}", count=1)[1:]
    return pattern if pattern.replace("{l}", str(layer)).replace("{e}", str(expert)) == name else name


def _packed(counts: Iterable[int]) -> str:
    """Counts as base64 of 7-bit groups, lowest first, the high bit of a byte saying that more follow."""
    made = bytearray()
    for count in counts:
        while count > 127:
            made.append(count & 127 | 128)
            count >>= 7
        made.append(count)
    return base64.b64encode(made).decode()


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _tiles(found: dict[str, Any]) -> list[dict[str, str]]:
    meta, modules = found["meta"], found["modules"]
    seen, held = meta["parameters"]["seen"], meta["parameters"]["in_matrices"]
    scored = sorted((one["snr"], one["name"]) for one in modules if one["snr"] is not None)
    ways = ", ".join(f"{count:,} by {way}" for way, count in meta["computed_by"].items())
    layers = len({one["layer"] for one in modules} - {None})
    tiles = [
        _tile("matrices", f"{len(modules):,}", f"{layers} layers, {len({one['type'] for one in modules})} types"),
        _tile("parameters seen", f"{seen:,}", f"{seen / held:.0%} of those in matrices"),
    ]
    if scored:
        low, high = scored[0][0], scored[-1][0]
        note = f"from {low:.3g} to {high:.3g}"
        tiles.append(_tile("median SNR", f"{scored[len(scored) // 2][0]:.3g}", note))
    tiles += [
        _tile("accuracy", f"{meta['snr_relative_error']:.0e}", f"relative error of an SNR, at most; {ways}"),
        _tile(
            "without SNR", f"{len(meta['problems']):,}", "listed below" if meta["problems"] else "every matrix has one"
        ),
    ]
    return tiles


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}
