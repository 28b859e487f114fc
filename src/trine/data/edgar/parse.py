"""Filings on disk to items in a table, by several processes; what cannot be read is set aside with its reason.

    items.parquet       a row per item, in the order of the inputs
    documents.parquet   a row per input: source_path, status, reason, seconds
    removed.parquet     with explain: a row per piece of furniture that was taken out

Rows stream: memory holds at most four filings per process, and 16 MiB of rows for each table.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trine.data.edgar.worker import Outcome, cpu_limit
from trine.errors import BadInput, TrineError
from trine.manifest import fsync_path, remove_stale
from trine.progress import Progress, silent

_TEXTS = "accession cik company form period filed source_path part item title text tables".split()
ITEMS = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        ("confidence", pa.float64()),
        ("warnings", pa.string()),
        ("sha256", pa.string()),
        ("byte_start", pa.int64()),
        ("byte_end", pa.int64()),
    ]
)
DOCUMENTS = pa.schema(
    [("source_path", pa.string()), ("status", pa.string()), ("reason", pa.string()), ("seconds", pa.float64())]
)
REMOVED = pa.schema(
    [("source_path", pa.string()), ("kind", pa.string()), ("text", pa.string()), ("byte_start", pa.int64())]
)
ENDINGS = (".txt", ".nc", ".htm", ".html", ".xhtml", ".sgml")
_GROUP_CHARACTERS = 16 << 20
_AHEAD = 4
_WALL_FACTOR, _WALL_SECONDS, _PACKED_RATIO = 20.0, 60.0, 30
_START_SECONDS = 120.0


def list_inputs(given: Sequence[Path]) -> tuple[list[Path], int]:
    """Files named, and files with a filing's ending in folders named, in order; how many others the folders hold."""
    files: list[Path] = []
    others = 0
    for path in given:
        if path.is_dir():
            for folder, below, names in os.walk(path):
                below[:] = sorted(one for one in below if not one.startswith("."))
                found = [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
                taken = [one for one in found if one.name.lower().removesuffix(".gz").endswith(ENDINGS)]
                others += len(found) - len(taken)
                files += taken
        elif path.exists():
            files.append(path)
        else:
            raise BadInput(f"{path}: no such file or folder")
    if not files:
        raise BadInput(f"{', '.join(map(str, given))}: no filing in it; expected {' '.join(ENDINGS)}, also with .gz")
    return list(dict.fromkeys(files)), others


def parse_filings(
    given: Sequence[Path], out: Path, workers: int = 1, explain: bool = False, progress: Progress = silent
) -> dict[str, Any]:
    """Parse every input into `out` and the tables beside it. Returns counts.

    Raises BadInput, before any work, for missing inputs and outputs that exist. A filing never stops the run.
    """
    if workers < 1:
        raise BadInput(f"--workers {workers}: expected 1 or more")
    targets = {"documents": out.with_name("documents.parquet"), "items": out}
    if explain:
        targets = {"removed": out.with_name("removed.parquet"), **targets}
    if out == targets["documents"] or out == targets.get("removed"):
        raise BadInput(f"{out}: this name is taken by the table beside the items; name another --out")
    for target in targets.values():
        if target.exists():
            raise BadInput(f"{target}: already exists; name another --out, or remove it first")
    inputs, others = list_inputs(given)
    out.parent.mkdir(parents=True, exist_ok=True)
    counts, removed, read, began = Counter[str](), Counter[str](), 0, time.monotonic()
    with _Tables(targets) as tables, _Pool(min(workers, len(inputs)), explain) as pool:
        for number, outcome in enumerate(pool.run(inputs)):
            what = f"parse: filings, {counts['items']:,} items, {counts['quarantined']:,} set aside"
            progress(number, len(inputs), what)
            tables.add(outcome)
            read += outcome.bytes
            counts.update({outcome.status: 1, "items": len(outcome.items)})
            removed.update(one["kind"] for one in outcome.removed)
        what = f"parse: filings, {counts['items']:,} items, {counts['quarantined']:,} set aside"
        progress(len(inputs), len(inputs), what)
        tables.publish()
    return {
        "inputs": len(inputs),
        "parsed": counts["parsed"],
        "quarantined": counts["quarantined"],
        "items": counts["items"],
        "bytes": read,
        "seconds": time.monotonic() - began,
        "not_filings": others,
        **({"removed": dict(removed)} if explain else {}),
    }


class _Tables:
    """The tables in the making: temporary siblings, renamed together at the end, the items last."""

    def __init__(self, targets: dict[str, Path]) -> None:
        schemas = {"items": ITEMS, "documents": DOCUMENTS, "removed": REMOVED}
        self.targets = targets
        for target in targets.values():
            remove_stale(target)
        self.paths = {name: path.with_name(f".{path.name}.tmp-{os.getpid()}") for name, path in targets.items()}
        self.writers = {
            name: pq.ParquetWriter(path, schemas[name], compression="zstd") for name, path in self.paths.items()
        }
        self.schemas = schemas
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in targets}
        self.pending = dict.fromkeys(targets, 0)

    def __enter__(self) -> _Tables:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self.writers.values():
            writer.close()
        for path in self.paths.values():
            path.unlink(missing_ok=True)

    def add(self, outcome: Outcome) -> None:
        columns = {name: getattr(outcome, name) for name in DOCUMENTS.names}
        rows = {"items": outcome.items, "documents": [columns], "removed": outcome.removed}
        for name in self.targets:
            self.rows[name] += rows[name]
            self.pending[name] += sum(300 + len(row.get("text", "")) + len(row.get("tables", "")) for row in rows[name])
            if self.pending[name] >= _GROUP_CHARACTERS:
                self._flush(name)

    def publish(self) -> None:
        for name, target in self.targets.items():
            self._flush(name)
            self.writers[name].close()
            fsync_path(self.paths[name])
            if target.exists():
                raise BadInput(f"{target}: appeared meanwhile; nothing was written")
        for name, target in self.targets.items():
            self.paths[name].rename(target)
            fsync_path(target.parent)

    def _flush(self, name: str) -> None:
        if self.rows[name]:
            self.writers[name].write_table(pa.Table.from_pylist(self.rows[name], self.schemas[name]))
        self.rows[name], self.pending[name] = [], 0


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    number: int = -1
    """Of the input it has; -1 when it has none."""
    path: Path = Path()
    begun: float = 0.0
    deadline: float = 0.0


class _Pool:
    """Processes that each have one filing at a time; one that ends is replaced."""

    def __init__(self, workers: int, explain: bool) -> None:
        self.explain = explain
        self.workers = [self._start() for _ in range(workers)]
        for worker in self.workers:
            self._ready(worker)

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.connection.close()
            worker.process.kill()
            worker.process.wait()

    def run(self, inputs: Sequence[Path]) -> Iterator[Outcome]:
        """The outcome of every input, in their order."""
        done: dict[int, Outcome] = {}
        given = yielded = 0
        while yielded < len(inputs):
            for worker in self.workers:
                if worker.number < 0 and given < len(inputs) and given < yielded + _AHEAD * len(self.workers):
                    self._give(worker, given, inputs[given])
                    given += 1
            busy = [worker for worker in self.workers if worker.number >= 0]
            ready = wait([worker.connection for worker in busy], timeout=1.0)
            for worker in busy:
                if worker.connection in ready or time.monotonic() > worker.deadline:
                    number = worker.number
                    done[number] = self._take(worker, worker.connection in ready)
            while yielded in done:
                yield done.pop(yielded)
                yielded += 1

    def _give(self, worker: _Worker, number: int, path: Path) -> None:
        size = path.stat().st_size if path.is_file() else 0
        size *= _PACKED_RATIO if path.suffix == ".gz" else 1
        worker.number, worker.path, worker.begun = number, path, time.monotonic()
        worker.deadline = worker.begun + _WALL_SECONDS + _WALL_FACTOR * cpu_limit(size)
        worker.connection.send(str(path))

    def _take(self, worker: _Worker, ready: bool) -> Outcome:
        """The worker's answer; when it ended or stands still, an outcome that says so, and another process."""
        if ready:
            try:
                outcome = worker.connection.recv()
                worker.number = -1
                return outcome
            except (EOFError, OSError):
                pass
        else:
            worker.process.kill()
        reason = _why_ended(worker.process.wait(), ready)
        worker.connection.close()
        fresh = self._start()
        self._ready(fresh)
        worker.process, worker.connection, worker.number = fresh.process, fresh.connection, -1
        return Outcome(str(worker.path), "quarantined", reason, time.monotonic() - worker.begun)

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        code = f"from trine.data.edgar.worker import serve; serve({theirs.fileno()}, {self.explain})"
        command, null = [sys.executable, "-c", code], subprocess.DEVNULL
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=null, stdout=null)
        theirs.close()
        return _Worker(process, ours)

    def _ready(self, worker: _Worker) -> None:
        """Wait for a process's first word. Raises TrineError when it does not come."""
        try:
            if worker.connection.poll(_START_SECONDS) and worker.connection.recv() == "ready":
                return
        except (EOFError, OSError):
            pass
        worker.process.kill()
        raise TrineError(f"a process that parses could not be started (exit {worker.process.wait()})")


def _why_ended(code: int, ready: bool) -> str:
    if not ready:
        return "stood still and was stopped"
    if code == -signal.SIGPROF:
        return "took more than two seconds of CPU time per MB and was stopped"
    if code < 0:
        return f"ended its process by {signal.Signals(-code).name}"
    return f"ended its process with exit code {code}"
