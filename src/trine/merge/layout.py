"""Where each output tensor lies: files of safetensors whose headers are known before anything is merged."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from trine.errors import BadInput
from trine.merge.jobs import Job
from trine.weights.index import SINGLE

SHARD_BYTES = 5_000_000_000
_ALIGNMENT = 8


@dataclass(frozen=True)
class OutputFile:
    """One file: its header, and its jobs with the place of each in the file."""

    name: str
    header: bytes
    places: tuple[tuple[Job, int], ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(job.bytes for job, _ in self.places)


def lay_out(jobs: Sequence[Job], shard_bytes: int = SHARD_BYTES) -> list[OutputFile]:
    """Jobs in order into files of at most `shard_bytes` of tensors (one tensor may be larger)."""
    if shard_bytes < 1:
        raise BadInput(f"--shard-bytes {shard_bytes}: expected at least 1")
    groups: list[list[Job]] = [[]]
    filled = 0
    for job in jobs:
        if groups[-1] and filled + job.bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(job)
        filled += job.bytes
    count = len(groups)
    return [
        _file(SINGLE if count == 1 else f"model-{i:05}-of-{count:05}.safetensors", group)
        for i, group in enumerate(groups, 1)
    ]


def _file(name: str, jobs: list[Job]) -> OutputFile:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place, places = 0, []
    for job in jobs:
        end = place + job.bytes
        entries[job.name] = {"dtype": job.stored, "shape": list(job.shape), "data_offsets": [place, end]}
        places.append(place)
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = struct.pack("<Q", len(text)) + text
    return OutputFile(name, header, tuple((job, len(header) + at) for job, at in zip(jobs, places, strict=True)))
