"""Annual reports as JSON by item, in the layout of public extractors, to texts split by company.

Enters: a folder of .json files, each one report, with `cik` and keys `item_1`, `item_1A`, ... Leaves: a published
folder with train.jsonl and heldout.jsonl, a line per item, `{"text", "cik", "item"}`.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from trine.errors import BadInput
from trine.manifest import publish
from trine.progress import Progress, silent

_LEAST_CHARACTERS = 200
"""Shorter items say that there is nothing to say."""


def write_items(source: Path, heldout_fraction: float, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Publish `out`. No company is in both files: in the order of a hash of their CIKs, companies are held out that do
    not bring the held-out text above `heldout_fraction` of all; at least one. Returns companies and characters by set.

    Raises BadInput for a folder without reports, for a file that is none, and for a single company.
    """
    paths = sorted(source.rglob("*.json"))
    if not paths:
        raise BadInput(f"{source}: no .json file in it; expected annual reports by item")
    companies: dict[str, list[dict[str, str]]] = defaultdict(list)
    for done, path in enumerate(paths):
        progress(done, len(paths), "items: reports")
        for record in _items(path):
            companies[record["cik"]].append(record)
    if len(companies) < 2:
        raise BadInput(f"{source}: {len(companies)} companies with text; expected at least 2, one to hold out")
    held = _held_out(companies, heldout_fraction)
    meta: dict[str, Any] = {}
    with publish(out, "texts", meta) as folder:
        for name in ("train", "heldout"):
            chosen = [cik for cik in sorted(companies) if (cik in held) is (name == "heldout")]
            records = [record for cik in chosen for record in companies[cik]]
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
            meta[name] = {"companies": len(chosen), "characters": sum(len(one["text"]) for one in records)}
    progress(len(paths), len(paths), "items: reports")
    return meta


def _items(path: Path) -> list[dict[str, str]]:
    try:
        report = json.loads(path.read_bytes())
        cik = str(report["cik"]).lstrip("0")
        items = {key: text for key, text in report.items() if key.startswith("item_") and isinstance(text, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: expected a report by item, with the keys cik and item_1, ... ({error!r:.80})"
        ) from None
    return [
        {"text": text, "cik": cik, "item": key.removeprefix("item_")}
        for key, text in items.items()
        if len(text) >= _LEAST_CHARACTERS
    ]


def _held_out(companies: dict[str, list[dict[str, str]]], fraction: float) -> set[str]:
    sizes = {cik: sum(len(record["text"]) for record in records) for cik, records in companies.items()}
    order = sorted(sizes, key=lambda cik: hashlib.sha256(cik.encode()).digest())
    room, held = fraction * sum(sizes.values()), set[str]()
    for cik in order:
        if sizes[cik] <= room:
            room -= sizes[cik]
            held.add(cik)
    return held or {min(order, key=lambda cik: sizes[cik])}
