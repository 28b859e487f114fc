"""A few real training steps of a small copy of the model in a process of its own: their time and memory.

    python -m trine.estimate.probe < JOB

prints a JSON line for each step done, and stops before the step that would end after the job's seconds. The copy has
fewer layers; the loss, the optimizers and a micro-batch are the run's own, the tokens are random.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch.profiler import ProfilerActivity, profile

from trine.data.loader import Batch
from trine.errors import TrineError
from trine.estimate.shape import build, parse_shape
from trine.model.afmoe import Afmoe
from trine.model.hf import LanguageModel
from trine.model.init import init_model
from trine.optim.config import OptimConfig
from trine.optim.groups import build_optimizers
from trine.train.config import TrainConfig
from trine.train.meters import StepMeter, used_bytes
from trine.train.setup import deterministic, pick_device
from trine.train.step import train_step

STEPS = 3
"""The first pays for what is made once; the others are timed."""
_DOCUMENT = 512
_SAMPLE_SECONDS = 0.005


class Job(BaseModel):
    """What a probe runs."""

    shape: dict[str, Any]
    optim: OptimConfig
    train: TrainConfig
    micro_batches: int
    rows: int
    """Sequences in a micro-batch."""
    seconds: float
    memory: int
    """Bytes it may take."""


@dataclass(frozen=True)
class StepCost:
    """One step of a probe."""

    seconds: dict[str, float]
    """By part: forward, backward, optimizer."""
    peak: int
    """Most bytes taken since the process began its work."""
    activations: int
    """Bytes that one micro-batch's forward pass leaves for its backward pass."""


def run_probe(job: Job, limit: float) -> list[StepCost]:
    """Run `job` in a fresh process; what it finished before `limit` seconds. Empty when its memory did not do.

    Raises TrineError when it failed for another reason.
    """
    command = [sys.executable, "-m", "trine.estimate.probe"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        try:
            out, err = child.communicate(job.model_dump_json().encode(), timeout=limit)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
        lines = out.splitlines()
    if not lines and child.returncode > 0:
        raise TrineError(f"the probe failed: {err.decode(errors='replace').strip().splitlines()[-1]}")
    return [StepCost(**json.loads(line)) for line in lines if line.endswith(b"}")]


def main() -> None:
    """Read a job, run it, print each step."""
    job = Job.model_validate_json(sys.stdin.read())
    device = pick_device(job.train.device)
    base = used_bytes(device)
    if device.type == "cpu":
        _bound(job.memory)
    try:
        with deterministic(job.train), Peak(device, base) as peak:
            for cost in _steps(job, device, peak):
                print(json.dumps(asdict(cost)), flush=True)
    except MemoryError:
        return
    except RuntimeError as error:  # torch's allocator, and threads that find no room for their stack
        if not any(word in str(error) for word in ("memory", "new thread")):
            raise


def _bound(more: int) -> None:
    """Let this process take `more` bytes beyond what it has: an allocation fails before the machine is short."""
    status = Path("/proc/self/status")
    if status.exists():
        held = next(line for line in status.read_text().splitlines() if line.startswith("VmData:"))
        limit = int(held.split()[1]) * 1024 + more
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _steps(job: Job, device: torch.device, peak: Peak) -> Iterator[StepCost]:
    until = time.monotonic() + job.seconds
    model = build(parse_shape(job.shape))
    if isinstance(model, Afmoe):
        init_model(model, job.train.seed)
    model.to(device).train()
    model.compute_dtype = getattr(torch, job.train.dtype)
    model.recompute = job.train.recompute
    optimizers = build_optimizers(model, job.optim)
    activations = 0
    for step in range(STEPS):
        began = time.monotonic()
        batches = [_batch(job, model, step * job.micro_batches + i).to(device) for i in range(job.micro_batches)]
        meter = StepMeter(device)
        train_step(model, optimizers, batches, job.train, job.optim.clip_norm, 1.0, meter)
        if step == 0:
            optimizers.zero_grad()
            activations = _kept_by_forward(model, batches[0])
        yield StepCost(meter.seconds, peak.bytes(), activations)
        if 2 * time.monotonic() - began > until:
            return


def _batch(job: Job, model: LanguageModel, index: int) -> Batch:
    """Random tokens in documents of 512."""
    size, vocabulary = (job.rows, job.train.sequence_length), model.output_weight.shape[0]
    generator = torch.Generator().manual_seed(index)
    tokens, targets = (torch.randint(0, vocabulary, size, generator=generator) for _ in range(2))
    ids = (torch.arange(size[1], dtype=torch.int32) // _DOCUMENT).expand(size)
    return Batch(tokens, targets, ids if job.train.document_mask else None)


def _kept_by_forward(model: LanguageModel, batch: Batch) -> int:
    """Bytes that are allocated in a forward pass and not freed in it."""
    if batch.tokens.is_cuda:
        before = torch.cuda.memory_allocated(batch.tokens.device)
        kept = model.hidden(batch.tokens, batch.document_ids)
        return torch.cuda.memory_allocated(batch.tokens.device) - before if kept else 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        kept = model.hidden(batch.tokens, batch.document_ids)
    del kept
    return sum(event.self_cpu_memory_usage for event in trace.key_averages())


class Peak:
    """Follows the memory of this process every five milliseconds."""

    def __init__(self, device: torch.device, base: int) -> None:
        self._device, self._base, self._most, self._done = device, base, base, threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def bytes(self) -> int:
        """The most seen so far, less what there was at the start."""
        self._most = max(self._most, used_bytes(self._device))
        return self._most - self._base

    def _follow(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self.bytes()


if __name__ == "__main__":
    main()
