"""What a step costs: seconds by part, memory, and the share of the machine's matrix-product speed it uses."""

from __future__ import annotations

import time
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch

_SIZE = {"cpu": 1024, "cuda": 8192}
_PROBE_SECONDS = 0.3


class StepMeter:
    """Laps of one step. On CUDA they are events in the queue of the device; only asking for the seconds waits."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory_bytes = 0
        """CPU: the most private memory of the process at the end of a lap. CUDA: the most allocated in the step."""
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event]] = []
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._mark("")
        self._began = time.perf_counter()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by lap, the first first. On CUDA it returns when the device has finished the last."""
        if not self._events:
            return self._seconds
        self._events[-1][1].synchronize()
        found: dict[str, float] = {}
        for (_, begin), (name, end) in pairwise(self._events):
            found[name] = found.get(name, 0.0) + begin.elapsed_time(end) / 1000
        return found

    def lap(self, name: str) -> None:
        """Book the time since the last lap as `name`; laps of one name add up."""
        if self.device.type == "cuda":
            self._mark(name)
        else:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - self._began
        self.memory_bytes = max(self.memory_bytes, used_bytes(self.device))
        self._began = time.perf_counter()

    def _mark(self, name: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((name, event))


def used_bytes(device: torch.device) -> int:
    """CUDA: the largest allocation since the last reset. CPU: anonymous resident memory; 0 where Linux tells none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    for line in status.read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


@cache
def peak_flops(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Floating-point operations per second of the fastest of several square matrix products, in under a second.

    This is what `mfu` divides by: the speed that this machine was seen to reach with `threads` CPU threads,
    not a data sheet's.
    """
    size = _SIZE[device.type]
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(size, size, generator=generator).to(device, dtype)
    before, best, until = torch.get_num_threads(), float("inf"), None
    torch.set_num_threads(threads)
    try:
        while until is None or time.perf_counter() < until:
            meter = StepMeter(device)
            torch.mm(left, left)
            meter.lap("product")
            best = min(best, meter.seconds["product"])
            until = until or time.perf_counter() + _PROBE_SECONDS
    finally:
        torch.set_num_threads(before)
    return 2 * size**3 / best
