"""Outputs that are whole or absent: temporary sibling, fsync, manifest with SHA-256 last, rename.

Enters: a target path and files written into the folder that `publish` yields.
Leaves: that folder under its name, holding `manifest.json`; after a crash at any instant there is
either nothing under the name or a folder whose manifest lists every file with size and SHA-256.
Standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trine.errors import BadInput, TrineError

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 22


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits, read in 4 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: Path, data: str | bytes) -> None:
    """Write a whole file under its name at once: temporary sibling, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_path(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def publish(target: Path, kind: str, meta: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield an empty folder beside `target`; when the block ends without error it becomes `target`.

    `kind` names what the folder holds (`corpus`, `checkpoint`, ...) and `meta` is stored beside the
    checksums; the caller may add to the dict inside the block. Raises BadInput when `target` exists:
    an output is never mixed with an older one.
    """
    if target.exists():
        raise BadInput(f"{target}: already exists; name another --out, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target)
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    temporary.mkdir()
    try:
        yield temporary
        seal(temporary, kind, meta or {})
        temporary.rename(target)
        fsync_path(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def seal(folder: Path, kind: str, meta: dict[str, Any], known: dict[str, str] | None = None) -> None:
    """Flush every file of `folder` and write its manifest; `known` SHA-256 by file name are not computed again."""
    files = {}
    mask = os.umask(0o077)
    os.umask(mask)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        path.chmod(0o666 & ~mask)
        fsync_path(path)
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": (known or {}).get(path.relative_to(folder).as_posix()) or sha256_file(path),
        }
    for path in (p for p in folder.rglob("*") if p.is_dir()):
        fsync_path(path)
    record = {"kind": kind, "meta": meta, "files": files}
    write_file(folder / MANIFEST, json.dumps(record, indent=1) + "\n")


def remove_stale(target: Path) -> None:
    """Delete the temporary folders that dead processes left beside `target`."""
    for leftover in target.parent.glob(f".{target.name}.tmp-*"):
        owner = leftover.name.rpartition("-")[2]
        if owner.isdigit() and int(owner) != os.getpid() and is_alive(int(owner)):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, doing: str = "training into this folder") -> Iterator[None]:
    """Hold a folder: a second process is refused, being told what one is `doing`; a dead one's lock is void."""
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{folder}: another process is {doing}") from None
        yield


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_manifest(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """The manifest of a published folder. Raises BadInput when it is missing, broken or of another kind."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder" + (f" (expected a {kind})" if kind else ""))
    if not path.is_file():
        raise BadInput(f"{folder}: no {MANIFEST}, so this is not a complete {kind or 'trine'} folder")
    try:
        record = json.loads(path.read_text())
        found, _ = record["kind"], record["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a manifest ({error})") from None
    if kind is not None and found != kind:
        raise BadInput(f"{folder}: holds a {found}, expected a {kind}")
    return record


def verify(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """Read the manifest and check every file's size and SHA-256; raises TrineError naming the first bad file."""
    record = read_manifest(folder, kind)
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file():
            raise TrineError(f"{path}: listed in the manifest but missing")
        if path.stat().st_size != expected["bytes"]:
            size = path.stat().st_size
            raise TrineError(f"{path}: {size} bytes, the manifest says {expected['bytes']}")
        if sha256_file(path) != expected["sha256"]:
            raise TrineError(f"{path}: its SHA-256 differs from the manifest: the file is damaged")
    return record
