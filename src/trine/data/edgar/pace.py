"""One pace for all processes of a user: a small file under a lock says which requests are out and which came back.

A host sees a request at some instant between its sending and the head of its answer. So a turn is given only while
fewer than N others are out or had their answer less than a window ago: then no window of the host's clock holds more
than N requests, whatever the network or a busy machine delays. Standard library only.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from trine.manifest import is_alive

LONGEST_HOLD_SECONDS = 3600.0
_LOST_SECONDS = 300.0
_MARGIN_SECONDS = 0.01
_LOOK_SECONDS = 0.02


@dataclass
class _Turn:
    pid: int
    number: int
    begun: float
    ended: float | None = None


@dataclass
class _State:
    turns: list[_Turn]
    hold: float = 0.0


class Pace:
    """Turns to send, shared through the file `path` by every process that names it; `now` is a clock they share."""

    def __init__(self, path: Path, per_second: float, now: Callable[[], float] = time.monotonic) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._now = path, now
        self.most = max(1, int(per_second))
        self.window = max(1.0, self.most / per_second) + _MARGIN_SECONDS
        self._gap = 1.0 / per_second
        self._number = 0
        self._queue = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until a request may be sent; the block sends it at once and ends when the answer's head is there."""
        async with self._queue:
            while (wait := self._try()) > 0:
                await asyncio.sleep(wait)
            number = self._number
        try:
            yield
        finally:
            self._end(number)

    def hold(self, seconds: float) -> None:
        """Nobody sends for `seconds`; a longer hold that stands already stays."""
        with self._state() as state:
            state.hold = max(state.hold, self._now() + min(seconds, LONGEST_HOLD_SECONDS))

    def _try(self) -> float:
        """Take the turn if it is due and return 0, else the seconds until the next look."""
        with self._state() as state:
            now = self._now()
            ends = sorted(turn.ended for turn in state.turns if turn.ended is not None)
            due = max([state.hold, *(turn.begun + self._gap for turn in state.turns)])
            if len(state.turns) >= self.most:
                due = max(due, ends[0] + self.window if ends else now + _LOOK_SECONDS)
            if now < due:
                return due - now
            self._number += 1
            state.turns.append(_Turn(os.getpid(), self._number, now))
            return 0.0

    def _end(self, number: int) -> None:
        with self._state() as state:
            for turn in state.turns:
                if (turn.pid, turn.number) == (os.getpid(), number):
                    turn.ended = self._now()

    @contextmanager
    def _state(self) -> Iterator[_State]:
        """The turns that still count, read, and written back, under the file's lock."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            state = self._read(os.pread(handle, 1 << 16, 0))
            yield state
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(asdict(state)).encode(), 0)
        finally:
            os.close(handle)

    def _read(self, text: bytes) -> _State:
        """The state; after a broken write as if all turns had just ended, after a reboot as if none were."""
        now = self._now()
        try:
            stored = json.loads(text) if text.strip() else {"turns": [], "hold": 0.0}
            turns = [_Turn(one["pid"], one["number"], one["begun"], one["ended"]) for one in stored["turns"]]
            turns = [self._mended(turn, now) for turn in turns if turn.begun <= now]
            hold = float(stored["hold"])
        except (ValueError, KeyError, TypeError):
            return _State([_Turn(0, 0, now, now)] * self.most)
        counting = [turn for turn in turns if turn.ended is None or turn.ended > now - self.window]
        return _State(counting, hold if hold <= now + LONGEST_HOLD_SECONDS else 0.0)

    def _mended(self, turn: _Turn, now: float) -> _Turn:
        """A turn whose process is gone, or that was forgotten, ended now at the latest."""
        if turn.ended is None and turn.pid != os.getpid():
            gone = not is_alive(turn.pid)
            if gone or now - turn.begun > _LOST_SECONDS:
                return _Turn(turn.pid, turn.number, turn.begun, now if gone else turn.begun + _LOST_SECONDS)
        return turn
