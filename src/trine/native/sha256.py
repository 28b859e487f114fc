"""SHA-256 of several files at once, by the kernel in sha256.c; by hashlib, one after the other, without it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from trine.native.build import library

STREAMS = 4
_PIECE = 1 << 17
_PIECES = 128
"""A kernel that reads by itself looks up after so many."""
_BEGIN = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)

Found = Callable[[Path, str], None]
Stopped = Callable[[], bool]


def hash_files(paths: Iterator[Path], found: Found, stopped: Stopped) -> None:
    """Call found(path, SHA-256 as 64 hex digits) for each file that `paths` gives, as it is done, until stopped().

    Raises OSError with the file's name when one cannot be read.
    """
    kernel = _kernel()
    if kernel is None:
        for path in paths:
            _hash_plainly(path, found, stopped)
        return
    streams: list[_Stream] = []
    try:
        while not stopped():
            streams += [_Stream(path) for _, path in zip(range(STREAMS - len(streams)), paths, strict=False)]
            if not streams:
                return
            _read_and_advance(kernel, streams)
            for one in streams:
                one.fill()
            _advance(kernel, streams)
            for one in [one for one in streams if one.ended and one.begin == one.end]:
                one.file.close()
                streams.remove(one)
                found(one.path, one.hexdigest())
    finally:
        for one in streams:
            one.file.close()


@cache
def _kernel() -> ctypes.CDLL | None:
    found = library("sha256")
    if found is None or not found.available():
        return None
    at, long = ctypes.c_void_p, ctypes.c_int64
    found.sha256.argtypes = [ctypes.c_int, at, at, long]
    found.sha256_files.argtypes = [ctypes.c_int, at, at, at, at, long, long]
    found.sha256_files.restype = long
    return found


def _hash_plainly(path: Path, found: Found, stopped: Stopped) -> None:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while not stopped() and (piece := file.read(1 << 22)):
            digest.update(piece)
    if not stopped():
        found(path, digest.hexdigest())


def _read_and_advance(kernel: ctypes.CDLL, streams: list[_Stream]) -> None:
    """As many whole pieces as every stream still has in its file."""
    pieces = min(min((one.size - one.hashed) // _PIECE for one in streams), _PIECES)
    if pieces <= 0 or any(one.ended for one in streams):
        return
    files = np.array([one.file.fileno() for one in streams], np.int64)
    offsets = np.array([one.hashed for one in streams], np.int64)
    buffers = np.array([one.buffer.ctypes.data for one in streams], np.uint64)
    states = np.array([one.state.ctypes.data for one in streams], np.uint64)
    where = (files.ctypes.data, offsets.ctypes.data, buffers.ctypes.data, states.ctypes.data)
    kernel.sha256_files(len(streams), *where, _PIECE, pieces)
    for one, offset in zip(streams, offsets.tolist(), strict=True):
        one.go_on_at(offset)


def _advance(kernel: ctypes.CDLL, streams: list[_Stream]) -> None:
    """As many blocks of each stream as all of them hold."""
    blocks = min((one.end - one.begin) // 64 for one in streams)
    states = np.array([one.state.ctypes.data for one in streams], np.uint64)
    data = np.array([one.buffer.ctypes.data + one.begin for one in streams], np.uint64)
    kernel.sha256(len(streams), states.ctypes.data, data.ctypes.data, blocks)
    for one in streams:
        one.begin += 64 * blocks


class _Stream:
    """A file on its way through the kernel: the state, and a piece of it, the last one with the padding."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("rb", buffering=0)
        self.size = os.fstat(self.file.fileno()).st_size
        self.state = np.array(_BEGIN, np.uint32)
        self.buffer = np.empty(_PIECE + 128, np.uint8)
        self.bytes = self.begin = self.end = 0
        self.ended = False

    @property
    def hashed(self) -> int:
        """Bytes that are in the state."""
        return self.bytes - (self.end - self.begin)

    def go_on_at(self, offset: int) -> None:
        """The state holds the bytes before `offset`; drop what was read."""
        self.bytes, self.begin, self.end = offset, 0, 0
        self.file.seek(offset)

    def fill(self) -> None:
        """Read the next piece when this one is used up."""
        if self.begin < self.end or self.ended:
            return
        self.begin = self.end = 0
        while self.end < _PIECE and (count := self.file.readinto(self.buffer.data[self.end : _PIECE])):
            self.end += count
        self.bytes += self.end
        if self.end < _PIECE:
            self.ended = True
            padding = b"\x80" + bytes((55 - self.bytes) % 64) + struct.pack(">Q", 8 * self.bytes)
            self.buffer[self.end : self.end + len(padding)] = np.frombuffer(padding, np.uint8)
            self.end += len(padding)

    def hexdigest(self) -> str:
        """The digest of all that was read."""
        return self.state.astype(">u4").tobytes().hex()
