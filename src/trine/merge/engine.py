"""A plan to a published model folder: tensors in the order of the output, a block at a time, on every core.

The output's files are laid out and reserved first and filled in place, so the memory in use is that of the workers'
blocks. Beside the workers, one thread hashes the output as it grows and flushes it to the disk, and others hash the
inputs. All of it happens in a folder beside OUT, with a journal; OUT appears by a rename when everything is there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trine.errors import BadInput, TrineError
from trine.manifest import digest_of, fsync_path, seal
from trine.merge.arithmetic import crc32, narrow
from trine.merge.dtypes import Array
from trine.merge.folder import write_small_files
from trine.merge.hashing import InputHashes, OutputHashes
from trine.merge.jobs import Job, Plan
from trine.merge.journal import JOURNAL, Journal
from trine.merge.layout import OutputFile, lay_out
from trine.merge.methods.inputs import Direct, Target, apply
from trine.merge.methods.table import METHODS
from trine.merge.operands import operands
from trine.merge.source import Buffers, Files, NotFinite, count_not_finite, read_into
from trine.progress import Progress, silent

_BLOCKS = 64
"""A kernel that reads and writes by itself looks up after so many blocks: 8 million elements."""


@dataclass(frozen=True)
class Options:
    """How a plan is carried out."""

    mergekit: bool = False
    """Round where mergekit does, and use its formulas where they differ."""
    seed: int = 0
    allow_nonfinite: bool = False
    shard_bytes: int = 5_000_000_000
    threads: int = 0
    """Workers; 0: as many as cores."""
    checksums: tuple[tuple[str, str], ...] = ()
    """(file name, SHA-256) pairs that inputs must have."""
    command: str = ""
    """The command line, for the model card."""

    @property
    def workers(self) -> int:
        """Workers, at least one."""
        return self.threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else self.threads or 1


def partial_folder(out: Path) -> Path:
    """Where a merge into `out` works until it is complete."""
    return out.with_name(f".{out.name}.merge")


def merge(plan: Plan, out: Path, options: Options, progress: Progress = silent) -> dict[str, Any]:
    """Merge into the new folder `out`; going on where an earlier call was killed. Returns the manifest's record.

    Raises BadInput when `out` exists, another process is at it or the inputs changed; TrineError when it fails.
    """
    files = lay_out(plan.jobs, options.shard_bytes)
    _check_space(plan, files, out)
    with _working_folder(out) as folder:
        journal = Journal(folder, _head(plan, options))
        run = _Run(plan, files, folder, journal, options)
        try:
            run.reserve()
            run.work(progress)
            record = run.finish(progress)
        except (NotFinite, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise _explained(error, run) from None
        finally:
            run.close()
        folder.rename(out)
        fsync_path(out.parent)
    return record


def _head(plan: Plan, options: Options) -> dict[str, Any]:
    """What must be the same for a merge to go on."""
    stamps = {}
    for path in plan.files:
        stat = path.stat()
        stamps[str(path.resolve())] = [stat.st_size, stat.st_mtime_ns]
    settings = {"mergekit": options.mergekit, "seed": options.seed, "shard_bytes": options.shard_bytes}
    changes = [[tensor.name, tensor.change] for job in plan.jobs for tensor in job.inputs if any(tensor.change)]
    return {"plan": digest_of([plan.recipe.resolved, settings, options.allow_nonfinite, changes]), "inputs": stamps}


def _check_space(plan: Plan, files: list[OutputFile], out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise BadInput(f"{out}: already exists; name another folder, or remove it first")
    parent = next(one for one in [*out.absolute().parents] if one.exists())
    folder = partial_folder(out)
    held = sum(f.stat().st_blocks * 512 for f in folder.iterdir()) if folder.is_dir() else 0
    need, free = sum(file.size for file in files), shutil.disk_usage(parent).free + held
    if need > free:
        raise BadInput(f"{out}: the merged model takes {need / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free")


@contextmanager
def _working_folder(out: Path) -> Iterator[Path]:
    folder = partial_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"{out}: another process is merging into it now") from None
        yield folder
    finally:
        os.close(handle)


def _explained(error: NotFinite | OSError, run: _Run) -> TrineError:
    if isinstance(error, NotFinite):
        tensor = error.tensor
        count = count_not_finite(tensor, run.inputs.open(tensor.info.file))
        return TrineError(
            f"{tensor.info.file}: '{tensor.name}' holds {count:,} values that are NaN or infinite; nothing was kept. "
            "--allow-nonfinite merges them all the same"
        )
    return TrineError(f"{run.folder.parent}: cannot be written ({error.strerror}); nothing was kept")


class _Run:
    """The state of one merge."""

    def __init__(self, plan: Plan, files: list[OutputFile], folder: Path, journal: Journal, options: Options) -> None:
        self.plan, self.files, self.folder, self.journal, self.options = plan, files, folder, journal, options
        self.inputs = Files()
        self.handles: dict[str, int] = {}
        self.stop = threading.Event()
        self.written = 0
        self._lock = threading.Lock()
        self._local = threading.local()
        self.output = OutputHashes(files, self.stop)
        self.hashes = InputHashes(plan, options.checksums, journal, self.stop)

    def reserve(self) -> None:
        """Make every output file in its full size, so that a full disk is known at once."""
        names = {file.name for file in self.files}
        for stray in self.folder.iterdir():
            if stray.name not in names | {JOURNAL}:
                stray.unlink()
        for file in self.files:
            handle = os.open(self.folder / file.name, os.O_RDWR | os.O_CREAT, 0o644)
            self.handles[file.name] = handle
            os.ftruncate(handle, file.size)
            if hasattr(os, "posix_fallocate") and file.size:
                os.posix_fallocate(handle, 0, file.size)
            os.pwrite(handle, file.header, 0)
        for path in self.plan.files:
            self.inputs.open(path)

    def work(self, progress: Progress) -> None:
        """Merge every tensor that is not there yet, and hash inputs and output meanwhile."""
        work = [(file, job, place) for file in self.files for job, place in file.places]
        total = sum(job.bytes for _, job, _ in work)
        began = time.monotonic()
        background = ThreadPoolExecutor(1 + self.options.workers, "hash")
        pool = ThreadPoolExecutor(self.options.workers, "merge")
        try:
            tasks: list[Future[Any]] = [background.submit(self.output.run, self.handles)]
            tasks += [background.submit(self.hashes.run) for _ in range(self.options.workers)]
            queue = iter(work)
            tasks += [pool.submit(self._worker, queue) for _ in range(self.options.workers)]
            pending = set(tasks)
            while pending:
                finished, pending = wait(pending, timeout=0.25, return_when=FIRST_EXCEPTION)
                for one in finished:
                    one.result()
                progress(self.written // 1_000_000, -(-total // 1_000_000), _note(self.written, began))
        finally:
            self.stop.set()
            self.output.wake()
            pool.shutdown(cancel_futures=True)
            background.shutdown(cancel_futures=True)

    def _worker(self, queue: Iterator[tuple[OutputFile, Job, int]]) -> None:
        buffers = Buffers()
        while not self.stop.is_set():
            with self._lock:
                task = next(queue, None)
            if task is None:
                return
            self._one(*task, buffers)

    def _one(self, file: OutputFile, job: Job, place: int, buffers: Buffers) -> None:
        handle = self.handles[file.name]
        if not self._there(file, job, place, handle):
            crc = self._copy(job, handle, place, buffers) if job.copied else self._merge(job, handle, place, buffers)
            if self.stop.is_set():
                return
            self.journal.tensor(job.name, crc)
        with self._lock:
            self.written += job.bytes
        self.output.ready(job)

    def _there(self, file: OutputFile, job: Job, place: int, handle: int) -> bool:
        """Whether an earlier call wrote this tensor and the bytes are still as it wrote them."""
        expected = self.journal.done.get(job.name)
        if expected is None:
            return False
        crc = 0
        for start in range(0, job.bytes, 1 << 22):
            piece = np.empty(min(1 << 22, job.bytes - start), np.uint8)
            read_into(handle, piece, place + start, self.folder / file.name)
            crc = crc32(piece, crc)
        if crc != expected:
            self.journal.notes.append(f"{file.name}: '{job.name}' was damaged after it was written; merged again")
        return crc == expected

    def _merge(self, job: Job, handle: int, place: int, buffers: Buffers) -> int:
        how = self.options
        inputs = operands(job, self.inputs, buffers, how.mergekit, how.seed, not how.allow_nonfinite)
        kernel = METHODS[job.method](inputs)
        target = Target(handle, place, job.stored)
        pour = kernel.pour if isinstance(kernel, Direct) and job.stored in ("BF16", "F32") else None
        for start, stop in inputs.spans(1 if pour is None else _BLOCKS):
            if self.stop.is_set():
                return 0
            if pour is not None:
                pour(start, stop, target)
                continue
            merged = narrow(apply(kernel, inputs, start, stop), job.stored)
            target.crc = crc32(merged, target.crc)
            _write(handle, merged, place + start * merged.itemsize)
        return target.crc

    def _copy(self, job: Job, handle: int, place: int, buffers: Buffers) -> int:
        """Bytes of the first input; all others must have the same."""
        crc, size = 0, job.models[0].info.bytes
        for start in range(0, size, 1 << 20):
            pieces = [buffers.get((i, "copy"), min(1 << 20, size - start), np.uint8) for i in range(len(job.models))]
            for tensor, piece in zip(job.models, pieces, strict=True):
                read_into(self.inputs.open(tensor.info.file), piece, tensor.info.offset + start, tensor.info.file)
                if not np.array_equal(piece, pieces[0]):
                    raise TrineError(
                        f"{tensor.info.file}: '{tensor.name}' holds whole numbers that differ from "
                        f"those of '{job.models[0].model}'; only equal ones can be merged"
                    )
            crc = crc32(pieces[0], crc)
            _write(handle, pieces[0], place + start)
        return crc

    def finish(self, progress: Progress) -> dict[str, Any]:
        """The small files and the manifest; the folder is complete then."""
        notes = self.hashes.notes()
        meta = {
            "verb": self.plan.verb,
            "config": self.plan.recipe.text,
            "method": self.plan.recipe.method,
            "numerics": "mergekit" if self.options.mergekit else "accurate",
            "seed": self.options.seed,
            "command": self.options.command,
            "aligned": self.plan.aligned,
            "stacked": self.plan.stacked,
            "inputs": self.hashes.found | self.plan.sources,
            "notes": [*self.plan.notes, *notes],
            "repaired": self.journal.notes,
        }
        write_small_files(self.plan, self.files, self.folder, meta)
        self.close()
        (self.folder / JOURNAL).unlink()
        seal(self.folder, "model", meta, self.output.found)
        return json.loads((self.folder / "manifest.json").read_text())

    def close(self) -> None:
        """Close every file; twice does no harm."""
        self.inputs.close()
        for handle in self.handles.values():
            os.close(handle)
        if self.handles:
            self.journal.close()
        self.handles = {}


def _write(handle: int, array: Array, offset: int) -> None:
    view = array.data.cast("B")
    while view:
        done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done


def _note(done: int, began: float) -> str:
    speed = done / max(time.monotonic() - began, 1e-6)
    return f"merge: MB  {speed / 1e6:,.0f} MB/s"
