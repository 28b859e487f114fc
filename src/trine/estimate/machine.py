"""What this machine can give a run."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from trine.train.config import TrainConfig
from trine.train.setup import pick_device, threads


@dataclass(frozen=True)
class Machine:
    """What a run may use."""

    device: str
    threads: int
    memory: int
    """Bytes that are free for it now."""
    disk: int
    """Bytes free where the run folder will be."""


def this_machine(train: TrainConfig, out: Path) -> Machine:
    """The machine this process runs on. Raises BadInput for a device that is not there."""
    device = pick_device(train.device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
    else:
        free, name = _free_memory(), "cpu"
    place = out
    while not place.exists():
        place = place.parent
    return Machine(name, threads(train), free, shutil.disk_usage(place).free)


def _free_memory() -> int:
    """What the system can give without swapping, within this process's control group."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = dict(line.split(":", 1) for line in info.read_text().splitlines())
    free = int(rows["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / f"memory.{name}" for name in ("max", "current"))
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(most) - int(used.read_text())))
    return free
