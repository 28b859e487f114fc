"""Train every run of a program, several at a time, and go on where a former command stopped.

Each run is an ordinary run folder trained by a process of its own: finished ones are kept, interrupted ones go on
from their newest checkpoint. Which runs there are follows from the results on disk alone (`plan.Program`).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from trine.chain import Watcher, check_machine, claimed, run_chain
from trine.errors import TrineError
from trine.manifest import read_manifest
from trine.study.plan import Program, RunSpec, reloaded

_POLL_SECONDS = 0.3
_REPORT_SECONDS = 10.0
_PROBE_STEPS = 6
FORWARD_SHARE = 1 / 3
"""Cost of evaluating a token in units of training on one: the forward pass is a third of the products."""


@dataclass
class _Job:
    spec: RunSpec
    process: subprocess.Popen[bytes]
    log: Path


def run_program(program: Program, jobs: int, watch: Watcher) -> dict[str, Any]:
    """Make the data, say how long it will take, train everything. Returns runs, tokens and seconds.

    Raises TrineError when a run fails (the others are stopped and kept).
    """
    began = time.monotonic()
    for spec in program.runs(presume=True):
        check_machine(spec.loaded.config)
    make_data(program, watch)
    runs = program.runs(presume=True)
    rate = _estimate(program, runs, jobs, watch)
    running: dict[str, _Job] = {}
    start, said = _trained(program), 0.0
    try:
        while True:
            _reap(running)
            keep_finished(program)
            todo = [one for one in program.runs() if one.result() is None and one.loaded.hash not in running]
            for spec in todo[: jobs - len(running)]:
                running[spec.loaded.hash] = _launch(spec)
            if not running:
                break
            now = time.monotonic()
            if now - said >= _REPORT_SECONDS:
                said = now
                seconds, trained = now - began, _trained(program) - start
                rate = trained / seconds if seconds > 60 and trained > 0 else rate
                _say(program, running, rate, watch)
            time.sleep(_POLL_SECONDS)
    finally:
        _stop(running)
    _say(program, {}, rate, watch)
    done = program.runs()
    return {"runs": len(done), "tokens": sum(one.tokens for one in done), "seconds": time.monotonic() - began}


def make_data(program: Program, watch: Watcher) -> None:
    """Corpus, tokenizer and tokens of every base, each once, shared by all arms."""
    for study in program.studies:
        tokens, loaded = program.data(study)
        if loaded is not None:
            run_chain(loaded, tokens.parent, watch)
        read_manifest(tokens, "tokens")


def keep_finished(program: Program) -> None:
    """Keep the figures of every run that has finished."""
    for spec in program.runs():
        spec.keep()


def work_tokens(spec: RunSpec) -> float:
    """Tokens that the run takes as long as: those trained on, and a third of those scored."""
    train = spec.loaded.config.train
    assert train is not None
    every = train.eval.every_steps or max(1, train.steps // 10)
    return spec.tokens + train.steps // every * train.eval.max_tokens * FORWARD_SHARE


def _estimate(program: Program, runs: list[RunSpec], jobs: int, watch: Watcher) -> float:
    """Tokens per second of `jobs` runs at once: of the finished runs, else measured by training for some steps."""
    results = [(one, one.result()) for one in runs]
    left = [one for one, result in results if result is None]
    rates = [result["tokens_per_second"] for _, result in results if result and result["tokens_per_second"]]
    if not left:
        return 0.0
    rate = jobs * median(rates) if rates else _probe(program, left[0], jobs, watch)
    seconds = sum(one.tokens if rates else work_tokens(one) for one in left) / rate
    total = sum(one.tokens for one in left)
    watch.on_event(
        f"{len(left)} of {len(runs)} runs to train ({total / 1e6:,.1f} M tokens, {jobs} at a time), "
        f"{rate:,.0f} tokens/s: about {_hours(seconds)}; a learning rate at its grid's end adds runs"
    )
    return rate


def _probe(program: Program, spec: RunSpec, jobs: int, watch: Watcher) -> float:
    """Train `jobs` copies for a few steps side by side; the sum of their speeds."""
    watch.on_event(f"measuring the speed: {jobs} x {_PROBE_STEPS} steps of {spec.title}")
    config = spec.loaded.config
    assert config.train is not None
    changes = {
        "steps": _PROBE_STEPS,
        "eval": config.train.eval.model_copy(update={"max_tokens": config.train.sequence_length}),
    }
    schedule = config.optim.schedule.model_copy(update={"warmup_steps": 0, "decay_steps": 0})
    short = config.model_copy(
        update={
            "train": config.train.model_copy(update=changes),
            "optim": config.optim.model_copy(update={"schedule": schedule}),
        }
    )
    folder = program.out / "probe"
    shutil.rmtree(folder, ignore_errors=True)
    running = {
        str(i): _launch(RunSpec(f"probe{i}", reloaded(short), folder / str(i), program.kept)) for i in range(jobs)
    }
    try:
        while _reap(running):
            time.sleep(_POLL_SECONDS)
    finally:
        _stop(running)
    speeds = []
    for path in folder.glob("*/*/metrics.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        speeds.append(median(one["tokens_per_second"] for one in records[2:]))
    shutil.rmtree(folder, ignore_errors=True)
    return sum(speeds)


def _launch(spec: RunSpec) -> _Job:
    folder = spec.folder
    with claimed(spec.loaded, folder):
        log = folder.with_name(f"{folder.name}.log")
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "trine.study.worker", str(folder), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=os.environ | _threads(spec),
            )
    return _Job(spec, process, log)


def _threads(spec: RunSpec) -> dict[str, str]:
    train = spec.loaded.config.train
    return {"OMP_NUM_THREADS": str(train.threads)} if train and train.threads else {}


def _reap(running: dict[str, _Job]) -> bool:
    """Forget the runs that have ended. Whether any goes on; raises TrineError for one that failed."""
    for key, job in list(running.items()):
        code = job.process.poll()
        if code is None:
            continue
        del running[key]
        if code:
            last = job.log.read_text(errors="replace").strip().splitlines()[-4:]
            raise TrineError(
                f"{job.spec.folder}: training ended with exit code {code}; see {job.log}:\n" + "\n".join(last)
            )
        job.log.unlink()
    return bool(running)


def _stop(running: dict[str, _Job]) -> None:
    for job in running.values():
        job.process.send_signal(signal.SIGTERM)
    for job in running.values():
        job.process.wait()


def _step(spec: RunSpec) -> int:
    """The last step that the run has logged."""
    path = spec.folder / "metrics.jsonl"
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 18)))
        lines = file.read().split(b"\n")[:-1]
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except ValueError:
        return 0


def _trained(program: Program) -> int:
    """Tokens trained on so far in all runs."""
    total = 0
    for spec in program.runs(presume=True):
        total += spec.timeline.tokens(_step(spec)) if spec.result() is None else spec.tokens
    return total


def _say(program: Program, running: dict[str, _Job], rate: float, watch: Watcher) -> None:
    runs = program.runs(presume=True)
    finished = sum(one.result() is not None for one in runs)
    trained, total = _trained(program), sum(one.tokens for one in runs)
    now = [f"{job.spec.title} at step {_step(job.spec):,}" for job in running.values()]
    eta = f", {rate:,.0f} tokens/s, ETA {_hours((total - trained) / rate)}" if rate and running else ""
    text = f"{finished}/{len(runs)} runs{eta}" + (f" ({', '.join(now)})" if now else "")
    watch.progress(trained, total, f"study: tokens, {text}")


def _hours(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
