"""Broken and hostile filings through `trine edgar parse`, for bench/faults.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
from hostile_filings import DOCUMENTS

from trine.data.edgar.parse import parse_filings
from trine.data.edgar.worker import SECONDS_PER_MB


class HostileFilings:
    """One of the sixty: parsed, or set aside with a reason; it ends no process and takes at most its time."""

    trials = len(DOCUMENTS)

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def trial(self, seed: int) -> None:
        name, make = list(DOCUMENTS.items())[seed % len(DOCUMENTS)]
        place, out = self.folder / f"in-{seed}", self.folder / f"out-{seed}" / "items.parquet"
        place.mkdir(parents=True)
        (place / f"{name}.txt").write_bytes(make())
        parse_filings([place], out)
        check(place, out)
        shutil.rmtree(place)
        shutil.rmtree(out.parent)


def check(folder: Path, out: Path) -> None:
    """Every filing of `folder` has its row, with a reason where it was set aside, and took its time at most."""
    rows = pq.read_table(out.with_name("documents.parquet")).to_pylist()
    assert [Path(row["source_path"]).name for row in rows] == sorted(path.name for path in folder.iterdir())
    faults = []
    for row in rows:
        limit = SECONDS_PER_MB * max(1.0, Path(row["source_path"]).stat().st_size / 1e6)
        ended = "ended its process" in row["reason"] or "was stopped" in row["reason"]
        if ended or row["seconds"] > limit or (row["status"] == "quarantined" and not row["reason"]):
            faults.append(f"{Path(row['source_path']).name}: {row['status']}, {row['seconds']:.2f} s, {row['reason']}")
    assert not faults, "\n".join(faults)
