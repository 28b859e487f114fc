"""A scan's JSON to entries to choose from: trine's own, and the published scans in both of their layouts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.spectrum.matrices import place


@dataclass(frozen=True)
class Entry:
    """One scanned matrix."""

    name: str
    """The parameter's exact name."""
    type: str
    layer: int | None
    expert: int | None
    snr: float
    """NaN where the scan gives none; infinite in some published scans."""
    parameters: int | None
    """None in published scans, which give no shapes."""
    stored: str
    """The tensor in the file."""
    why: str | None = None
    """What the scan says of a matrix without an SNR."""


@dataclass(frozen=True)
class Scanned:
    """A scan file."""

    path: Path
    model: str
    measure: str
    published: bool
    """Whether the file is in a published layout."""
    entries: tuple[Entry, ...]


def read_scan(path: Path) -> Scanned:
    """Raises BadInput when the file is no scan, naming the entry that is wrong."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; expected a scan, made by `trine spectrum scan`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict) or not found:
        raise BadInput(f"{path}: not a scan; expected a mapping of modules")
    if "modules" in found and "meta" in found:
        return _own(path, found)
    nested = not any(isinstance(one, dict) and "snr" in one for one in found.values())
    listed: dict[str, tuple[str, Any]] = {}
    for key, one in found.items():
        if not isinstance(one, dict):
            raise BadInput(f"{path}: '{key}' is {one!r:.40}; expected a mapping")
        if nested:
            listed |= {name: (key, snr) for name, snr in one.items()}
        else:
            listed[key] = (str(one.get("type", place(key).type)), one.get("snr"))
    entries = [_published(path, name, kind, snr) for name, (kind, snr) in listed.items()]
    return Scanned(path, path.stem.removeprefix("snr_results_"), "published", True, tuple(entries))


def _published(path: Path, name: str, kind: str, snr: Any) -> Entry:
    if isinstance(snr, bool) or not isinstance(snr, int | float):
        raise BadInput(f"{path}: the SNR of '{name}' is {snr!r:.40}; expected a number")
    weight = name if name.endswith(".weight") else f"{name}.weight"
    where = place(weight)
    return Entry(weight, kind, where.layer, where.expert, float(snr), None, weight)


def _own(path: Path, found: dict[str, Any]) -> Scanned:
    try:
        meta, problems = found["meta"], found["meta"]["problems"]
        entries = [_module(name, one, problems.get(name)) for name, one in found["modules"].items()]
        return Scanned(path, str(meta["model"]), str(meta["measure"]), False, tuple(entries))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise BadInput(f"{path}: not a scan of trine ({error!r:.120})") from None


def _module(name: str, one: dict[str, Any], why: str | None) -> Entry:
    where = place(name)
    snr = math.nan if one["snr"] is None else float(one["snr"])
    stored = one["stored_as"][0] if "stored_as" in one else name
    return Entry(name, str(one["type"]), where.layer, where.expert, snr, math.prod(one["shape"]), stored, why)
