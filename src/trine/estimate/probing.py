"""Probes in processes of their own, which one process with everything imported forks: a start costs nothing then."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, BinaryIO, Self

from trine.errors import TrineError
from trine.estimate.probe import Job

_COMPILE_SECONDS = 300.0
"""For a first step that compiles; torch keeps the result, so that the run itself need not."""


class ProbeTimeout(TrineError):
    """Not even one step ended in time."""


@dataclass(frozen=True)
class Costs:
    """What a probe found."""

    seconds: list[dict[str, float]]
    """Of each step by part: data, forward, backward, optimizer."""
    peak: int
    """Most bytes taken since the process began its work."""
    activations: int | None
    """Bytes that one micro-batch's forward pass leaves for its backward pass; None when there was no time."""
    compiled: bool
    """Whether the first step compiled the model, in time that is not counted."""


class Probes:
    """Runs probes one after the other. A context manager, at whose end no process is left."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "trine.estimate.probe"]
        self._errors = tempfile.TemporaryFile()
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
        )
        self._hear("ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _kill(self._server)
        self._server.communicate()
        self._errors.close()

    def run(self, job: Job, limit: float) -> Costs | None:
        """Run `job` in a fresh process, for at most `limit` seconds and what compiling takes. None when its memory
        was too short.

        Raises ProbeTimeout when no step ended in time, TrineError when it failed for another reason.
        """
        timer = threading.Timer(limit + _COMPILE_SECONDS, _kill, [self._server])
        timer.start()
        try:
            with tempfile.TemporaryDirectory() as folder:
                job = job.model_copy(update={"folder": folder, "limit": limit})
                said, status = self._ask(job.model_dump_json())
        finally:
            timer.cancel()
        if status > 0:
            raise TrineError(f"the probe failed: {_last_line(self._errors)}")
        if status == -signal.SIGABRT or any("short" in one for one in said):
            return None
        steps = [one for one in said if "seconds" in one]
        if not steps:
            raise ProbeTimeout(f"no step of the probe ended within {limit:.0f} s")
        kept = next((one["activations"] for one in said if "activations" in one), None)
        compiled = any("compiled" in one for one in said)
        return Costs([one["seconds"] for one in steps], max(one["peak"] for one in steps), kept, compiled)

    def _ask(self, job: str) -> tuple[list[dict[str, Any]], int]:
        """What the job's process said and its exit status; that of the server when it ended without an answer."""
        assert self._server.stdin
        with contextlib.suppress(BrokenPipeError):
            self._server.stdin.write(job.encode() + b"\n")
            self._server.stdin.flush()
        said = self._hear("ended")
        return (said, said[-1]["ended"]) if said and "ended" in said[-1] else (said, self._server.wait() or 1)

    def _hear(self, last: str) -> list[dict[str, Any]]:
        """What is said up to the record with the key `last`, or all of it."""
        assert self._server.stdout
        said = list[dict[str, Any]]()
        for line in self._server.stdout:
            said += [json.loads(line)] if line.endswith(b"}\n") else []
            if said and last in said[-1]:
                break
        return said


def _kill(server: subprocess.Popen[bytes]) -> None:
    """End the server and the probe that it may be running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)


def _last_line(errors: BinaryIO) -> str:
    errors.seek(0)
    return (errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
