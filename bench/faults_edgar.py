"""Faults of EDGAR for bench/faults.py: hostile filings through `parse`, a host that fails under `fetch`."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pyarrow.parquet as pq
from edgar_server import PASSING, Edgar, filing, serving
from faults_merge import in_child
from hostile_filings import DOCUMENTS

from trine.data.edgar.fetch import fetch
from trine.data.edgar.parse import parse_filings
from trine.data.edgar.site import Policy
from trine.data.edgar.store import JOURNAL, OBJECTS
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


class FetchFaults:
    """A host with every fault fills a folder; the process is killed, and another one fills the folder to the end."""

    trials = 20

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")

    def trial(self, seed: int) -> None:
        rng, store = random.Random(seed), self.folder / f"store-{seed}"
        edgar = Edgar({f"/a/{n}.txt": filing(n) for n in range(2 * len(PASSING))})
        faults = rng.sample(PASSING * 2, 2 * len(PASSING))
        edgar.faults = {path: [fault] for path, fault in zip(edgar.files, faults, strict=True)}
        paths = [path[1:] for path in edgar.files]
        with serving(edgar), serving() as other:
            edgar.elsewhere = other.url
            policy = Policy("Example Ltd data@example.com", edgar.url, first_wait=0.05, silence=2, grace=2, slowest=1e6)
            in_child(lambda: fetch(rng.sample(paths, len(paths)), store, policy), kill_after=rng.uniform(0.2, 3))
            record = fetch(paths, store, policy)
            assert not other.seen, "a request went elsewhere"
        assert not record["failed"], record["failed"]
        assert edgar.busiest_second() <= 10, f"{edgar.busiest_second()} requests in a second"
        assert stored(store) == {path[1:]: data for path, data in edgar.files.items()}, "a file is lost or wrong"
        shutil.rmtree(store)


def stored(folder: Path) -> dict[str, bytes]:
    """Path to bytes by the journal: each path once, each file named by its SHA-256, and no other file."""
    lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    assert len({line["path"] for line in lines}) == len(lines), "a path stands twice"
    files = {line["path"]: (folder / line["file"]).read_bytes() for line in lines}
    for line in lines:
        name = Path(line["file"]).name.split(".")[0]
        assert name == line["sha256"] == hashlib.sha256(files[line["path"]]).hexdigest()
    on_disk = {path for path in (folder / OBJECTS).rglob("*") if path.is_file()}
    assert on_disk == {folder / line["file"] for line in lines}, "a file that no line names"
    return files
