"""The first steps of a real run of a model with few layers, in a process of its own: their time and memory.

    python -m trine.estimate.probe

forks for each job, a line of JSON on its input. The child runs `train.loop.fit` itself, so that whatever a run does
to be fast or small is in the figures, on random tokens in the job's folder. It prints a JSON line for each step, stops
before the step that would end after the job's seconds, then tells what a forward pass keeps for the backward pass. No
checkpoint is written.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch.profiler import ProfilerActivity, profile

from trine.data.loader import Batch
from trine.data.shards import ShardWriter, token_dtype, write_index
from trine.estimate.frozen import Frozen
from trine.estimate.shape import parse_shape
from trine.manifest import publish
from trine.model.causal import CausalModel
from trine.model.config import ModelConfig
from trine.model.hf import LanguageModel
from trine.model.hf_config import write_config
from trine.model.shape import build
from trine.optim.config import OptimConfig
from trine.train import loop
from trine.train.config import TrainConfig
from trine.train.meters import used_bytes
from trine.train.metrics import Unwatched
from trine.train.setup import pick_device

FEWEST = 2
"""Steps. The first pays for what is made once, the optimizer's state among it, and tells little."""
_DOCUMENTS, _LONGEST = 400, 1024
_SAMPLE_SECONDS = 0.005


class Job(BaseModel):
    """What a probe runs."""

    shape: dict[str, Any]
    optim: OptimConfig
    train: TrainConfig
    """With the batch of the probe, and as many steps as make its FLOPs those of the run."""
    vocabulary: int
    steps: int
    """At most."""
    seconds: float
    """No third step is begun that would end later than so many seconds after the start, or the first if it compiles."""
    memory: int
    """Bytes it may take."""
    limit: float = 0
    """Seconds after which it ends whatever it does."""
    folder: str = ""
    frozen: Frozen | None = None
    """What of the model is trained, where not all is."""


def main() -> None:
    """Fork a process for each job read, and say how it ended."""
    _say({"ready": True})
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _probe(Job.model_validate_json(line))
        _, status = os.waitpid(child, 0)
        _say({"ended": os.waitstatus_to_exitcode(status)})


def _probe(job: Job) -> None:
    """Run a job, print what it takes, end the process."""
    status = 0
    try:
        if job.frozen is not None and job.frozen.lora is not None:
            import_module("peft")
        peak = Peak(pick_device(job.train.device))
        if peak.device.type == "cpu":
            _bound(job.memory)
        _fit(job, peak)
    except Exception as error:
        # RuntimeError: torch's allocator, and threads that find no room for their stack
        words = ("memory", "new thread") if isinstance(error, RuntimeError) else ()
        if isinstance(error, MemoryError) or any(word in str(error) for word in words):
            _say({"short": "memory"})
        else:
            traceback.print_exc()
            status = 1
    os._exit(status)  # threads that prepare batches nobody waits for


def _say(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def _bound(more: int) -> None:
    """Let this process take `more` bytes beyond what it has: an allocation fails before the machine is short."""
    status = Path("/proc/self/status")
    if status.exists():
        held = next(line for line in status.read_text().splitlines() if line.startswith("VmData:"))
        limit = int(held.split()[1]) * 1024 + more
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


class _Done(Exception):
    """Enough steps were run."""


def _fit(job: Job, peak: Peak) -> None:
    shape, train, folder = parse_shape(job.shape), job.train, Path(job.folder)
    _write_tokens(folder / "tokens", job.vocabulary)
    if not isinstance(shape, ModelConfig) or train.init_from is not None:
        _write_shape(folder / "start", shape)
        train = train.model_copy(update={"init_from": str(folder / "start")})
    if job.frozen is not None and job.frozen.lora is None:
        (folder / "only").write_text("".join(f"{name}\n" for name in job.frozen.names))
        train = train.model_copy(update={"only": str(folder / "only")})
    elif job.frozen is not None:
        train = train.model_copy(update={"lora": job.frozen.lora})
    run_step, until, times = loop.train_step, time.monotonic() + job.seconds, list[float]()
    watchdog = _end_after(job.limit)

    def step(model: LanguageModel, optimizers: Any, micro_batches: list[Batch], *rest: Any) -> Any:
        nonlocal until, watchdog
        times.append(time.monotonic())
        if model.compiled and len(times) == 1:
            watchdog.cancel()
            _say({"compiled": True})
        elif model.compiled and len(times) == 2:
            until, watchdog = times[-1] + job.seconds, _end_after(job.limit)
        elif len(times) > job.steps or (len(times) > FEWEST and 2 * times[-1] - times[-2] > until):
            optimizers.zero_grad()
            _say({"activations": _kept_by_forward(model, micro_batches[0])})
            raise _Done
        return run_step(model, optimizers, micro_batches, *rest)

    class Teller(Unwatched):
        def on_step(self, record: dict[str, Any]) -> None:
            _say({"seconds": record["time"], "peak": peak.bytes(record["memory_bytes"])})

    loop.train_step = step
    loop.load_model = lambda path, dtype: _stand_in(shape, dtype, job.frozen, folder / "pages")
    loop.held_dtype = lambda path, compute: "float32" if job.frozen is None else job.frozen.held
    model = shape if isinstance(shape, ModelConfig) else ModelConfig()
    peak.start()
    try:
        loop.fit(model, job.optim, train, folder / "tokens", folder / "run", Teller())
    except _Done:
        return


def _write_shape(folder: Path, shape: Any) -> None:
    """A model folder without weights."""
    folder.mkdir()
    if isinstance(shape, ModelConfig):
        write_config(shape, folder, "float32", None)
    else:
        shape.save_pretrained(folder)


def _stand_in(shape: Any, dtype: str, frozen: Frozen | None, pages: Path) -> LanguageModel:
    """A model of `shape` that takes the memory that a loaded one takes: where much is never written, all is filled, and
    what stays in the pages of its file is in those of an empty one."""
    if frozen is not None and frozen.mapped:
        return hold_mapped(build(shape, "meta", dtype), pages)
    if frozen is None or not isinstance(shape, ModelConfig):
        return build(shape, "cpu", dtype)
    model = build(shape, "meta").to(getattr(torch, dtype)).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.normal_(std=0.02) if tensor.dim() > 1 else tensor.fill_(isinstance(tensor, torch.nn.Parameter))
    return model


def hold_mapped(model: LanguageModel, pages: Path) -> LanguageModel:
    """A model of transformers on the meta device with every parameter zero, in the pages of files that take no disk."""
    assert isinstance(model, CausalModel)
    pages.mkdir()
    model.peer.to_empty(device="cpu")
    model.peer.tie_weights()
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.zero_()
    for number, parameter in enumerate(model.parameters()):
        path = pages / str(number)
        path.touch()
        os.truncate(path, parameter.numel() * parameter.element_size())
        held = torch.from_file(str(path), shared=False, size=parameter.numel(), dtype=parameter.dtype)
        parameter.data = held.view(parameter.shape)
    return model


def _end_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()
    return timer


def _write_tokens(folder: Path, vocabulary: int) -> None:
    """A token folder of documents of random tokens."""
    rng = np.random.default_rng(0)
    with publish(folder, "tokens") as out:
        with ShardWriter(out, "train", token_dtype(vocabulary), 1 << 30) as writer:
            for _ in range(_DOCUMENTS):
                writer.add(rng.integers(0, vocabulary, int(rng.integers(1, _LONGEST))), 1)
        sizes = np.ones(vocabulary, dtype=np.uint16)
        write_index(out, {"train": writer.summary()}, sizes, bos=0, eos=1, tokenizer_sha256="none")


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

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._base = self._most = used_bytes(device)

    def start(self) -> None:
        threading.Thread(target=self._follow, daemon=True).start()

    def bytes(self, seen: int = 0) -> int:
        """The most so far, `seen` included, less what there was at first."""
        self._most = max(self._most, seen, used_bytes(self.device))
        return self._most - self._base

    def _follow(self) -> None:
        while True:
            self.bytes()
            time.sleep(_SAMPLE_SECONDS)


if __name__ == "__main__":
    main()
