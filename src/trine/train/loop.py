"""The run: a token folder enters, checkpoints and metrics leave.

Running `fit` again on the same folder goes on from the newest whole checkpoint, bit for bit: parameters,
optimizer state and balancing state are restored as saved, the batch of a step is a pure function of
(config, step), and nothing else is remembered.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trine.data.loader import Batch, batches
from trine.data.planned import PlannedStream
from trine.errors import BadInput, Diverged
from trine.manifest import locked
from trine.model.afmoe import Afmoe
from trine.model.config import ModelConfig
from trine.model.flops import training_flops
from trine.model.hf import LanguageModel, load_model
from trine.model.init import init_model
from trine.native.memory import kept_memory
from trine.optim.config import OptimConfig
from trine.optim.groups import build_optimizers
from trine.stability import Stability
from trine.train.checkpoint import (
    RunState,
    newest_whole,
    read_state,
    restore,
    save_checkpoint,
    set_aside_newer,
    sweep_leftovers,
)
from trine.train.config import TrainConfig
from trine.train.fast import compile_blocks, wants_compile
from trine.train.freeze import freeze, held_dtype
from trine.train.lora import LoraFactors, seed_dropout
from trine.train.meters import StepMeter, peak_flops
from trine.train.metrics import MetricsLog, Observer, Unwatched, flat_numbers, open_trackers, read_metrics
from trine.train.scoring import score
from trine.train.setup import Plan, deterministic, prepare, threads
from trine.train.spoil import spoiled
from trine.train.step import StepResult, train_step
from trine.train.stream import training_stream


def fit(
    model: ModelConfig,
    optim: OptimConfig,
    train: TrainConfig,
    tokens: Path,
    out: Path,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Train to `train.steps`, or go on where the run in `out` stopped.

    `tokens` is a folder of the pack stage; `out` receives `metrics.jsonl`, `checkpoints/step-N/` and the
    corpus ledger. Returns step, tokens, loss, bits_per_byte by set, the last checkpoint's folder and the
    seconds taken. Raises BadInput for data or options that do not fit, TrineError when it cannot go on.
    """
    plan = prepare(model, optim, train, tokens)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out), deterministic(train), kept_memory(plan.device):
        return Run(plan, out, observer or Unwatched()).loop()


class Run:
    """A run in progress: model, optimizers, position, log."""

    def __init__(self, plan: Plan, out: Path, observer: Observer) -> None:
        self.plan, self.out, self.observer = plan, out, observer
        sweep_leftovers(out)
        self.checkpoint = newest_whole(out, observer.on_event)
        set_aside_newer(out, self.checkpoint)
        self.factors: LoraFactors | None = None
        self.model = self._build()
        self.model.to(plan.device).train()
        self.model.compute_dtype = getattr(torch, plan.train.dtype)
        self.model.recompute = plan.train.recompute
        self.optimizers = build_optimizers(self.model, plan.optim)
        lengths = {span.train.sequence_length for span in plan.timeline.spans}
        self.token_flops = {length: training_flops(self.model, length) for length in lengths}
        self.environment = plan.environment | {"compiled": self._maybe_compile()}
        self.state = RunState(0, 0, 0, plan.fingerprint, self.environment)
        if self.checkpoint is not None:
            self.state = self._resume(self.checkpoint)
        self.stream = training_stream(plan.timeline, plan.shards.sets["train"], self.state.packing)
        if (plan.tokens / "ledger.json").exists():
            shutil.copyfile(plan.tokens / "ledger.json", out / "ledger.json")
        self.log = MetricsLog(out / "metrics.jsonl", self.state.step)
        self.stability = Stability(read_metrics(out / "metrics.jsonl"))
        self.peak = peak_flops(plan.device, getattr(torch, plan.train.dtype), threads(plan.train))
        self.trackers = open_trackers(plan.train.track, out, self.state.step)

    def loop(self) -> dict[str, Any]:
        """Every step from where the run stands to the last one."""
        steps, started, record = self.plan.train.steps, time.monotonic(), {}
        self.observer.on_start(self._info())
        timeline = self.plan.timeline
        for number in timeline.unreached():
            self.observer.on_event(f"train.phases.{number - 1} would begin after the run has ended")
        rows = timeline.micro_batches(self.state.step + 1)
        stream = batches(self.stream, self.state.sequence, rows, self.plan.train.loader_workers)
        for step in range(self.state.step + 1, steps + 1):
            begun, meter = time.monotonic(), StepMeter(self.plan.device)
            factor = timeline.lr_factor(step)
            result = self._step(step, stream, factor, meter)
            parts = meter.seconds  # on CUDA: when the update is done
            record = self._record(step, factor, result, time.monotonic() - begun, parts, meter.memory_bytes)
            if step % self.plan.eval_every == 0 or step == steps:
                record |= score(self.model, self.plan, timeline.span(step).train)
            self._write(record)
            if step % self.plan.save_every == 0 or step == steps:
                self._save(step)
        return self._finish(record, time.monotonic() - started)

    def _build(self) -> LanguageModel:
        plan = self.plan
        if plan.start is None:
            model = Afmoe(plan.model)
            if self.checkpoint is None:
                init_model(model, plan.train.seed)
        else:
            model = self._load(plan.start)
        if plan.only is not None:
            self.observer.on_event(freeze(model, plan.only))
        if plan.lora is not None and plan.train.lora is not None and plan.start is not None:
            self.factors = LoraFactors(model, plan.train.lora, plan.lora, plan.start, plan.train.seed)
            self.observer.on_event(self.factors.said)
        return model

    def _load(self, start: Path) -> LanguageModel:
        plan = self.plan
        whole = plan.only is None and plan.lora is None
        model = load_model(start, "float32" if whole else held_dtype(start, plan.train.dtype))
        held, needed = model.output_weight.shape[0], plan.shards.vocab_size
        if held < needed:
            raise BadInput(f"{start}: has {held} embeddings, the tokenizer of {plan.tokens} {needed} tokens")
        return model

    def _maybe_compile(self) -> str:
        if not isinstance(self.model, Afmoe):
            return "no"
        if not wants_compile(self.plan.train, self.model, self.plan.timeline.flops(self.token_flops)):
            return "no"
        compile_blocks(self.model)
        self.observer.on_event("the first step compiles the blocks, which takes about a minute")
        return "yes"

    def _resume(self, checkpoint: Path) -> RunState:
        state = read_state(checkpoint)
        if state.fingerprint != self.plan.fingerprint:
            raise BadInput(
                f"{checkpoint}: was trained with another config or other tokens; "
                "name another --out, or run it with the config it began with"
            )
        restore(checkpoint, self.model, self.optimizers, self.factors)
        for key, value in self.environment.items():
            if state.environment.get(key) != value:
                self.observer.on_event(
                    f"{key} was {state.environment.get(key)}, is {value}: "
                    "the run goes on, but not bit-identical to an uninterrupted one"
                )
        self.observer.on_event(f"resumed from {checkpoint.name}")
        return replace(state, environment=self.environment)

    def _step(self, step: int, stream: Iterator[Batch], factor: float, meter: StepMeter) -> StepResult:
        train = self.plan.timeline.span(step).train
        count = train.batch_sequences // train.micro_batch_sequences
        micro = [next(stream).to(self.plan.device) for _ in range(count)]
        if train.bad_batches is not None and train.bad_batches.planted(step):
            kind, vocabulary = train.bad_batches.kind, self.plan.shards.vocab_size
            micro = [spoiled(batch, kind, vocabulary, f"{train.seed}/{step}/{i}") for i, batch in enumerate(micro)]
        meter.lap("data")
        if train.lora is not None and train.lora.dropout:
            seed_dropout(train.seed, step)
        try:
            return train_step(self.model, self.optimizers, micro, train, self.plan.optim.clip_norm, factor, meter)
        except Diverged as error:
            raise Diverged(
                f"step {step}: {error}; last checkpoint: {self.checkpoint or 'none yet'}. A lower learning "
                "rate (optim.muon.lr, optim.adamw.lr) or a longer warmup (optim.schedule.warmup_steps) may help"
            ) from None

    def _record(
        self, step: int, factor: float, result: StepResult, seconds: float, parts: dict[str, float], memory: int
    ) -> dict[str, Any]:
        plan, router, span = self.plan, result.router, self.plan.timeline.span(step)
        tokens = plan.timeline.tokens(step)
        flops = span.tokens_per_step * self.token_flops[span.train.sequence_length]
        matrices = plan.optim.muon.lr if plan.optim.matrices == "muon" and plan.lora is None else plan.optim.adamw.lr
        record: dict[str, Any] = {
            "step": step,
            "tokens": tokens,
            "loss": result.loss,
            "balance_loss": result.balance_loss,
            "z_loss": result.z_loss,
            "lr": matrices * factor,
            "lr_adamw": plan.optim.adamw.lr * factor,
            "grad_norm": result.grad_norm,
            "tokens_per_second": span.tokens_per_step / seconds,
            "seconds": seconds,
            "mfu": flops / seconds / self.peak,
            "time": parts,
            "memory_bytes": memory,
            "epoch": tokens / plan.epoch_tokens,
            "batch_het": result.batch_het,
            **self.stability.add(result.loss, result.grad_norm),
        }
        if plan.on_answers:
            record["targets"] = result.targets
        if len(plan.timeline.spans) > 1:
            record["phase"] = span.phase
            record["batch_sequences"] = span.train.batch_sequences
            record["sequence_length"] = span.train.sequence_length
        if router:
            record["max_vio"] = sum(one.max_vio for one in router) / len(router)
            record["router"] = {
                "layer": [one.layer for one in router],
                "max_vio": [one.max_vio for one in router],
                "entropy": [one.entropy for one in router],
                "dead": [one.dead for one in router],
                "bias_spread": [one.bias_spread for one in router],
                "bias_change": list(result.bias_change),
            }
        return record

    def _write(self, record: dict[str, Any]) -> None:
        self.log.write(record)
        self.observer.on_step(record)
        for tracker in self.trackers:
            tracker.log(flat_numbers(record), record["step"])

    def _save(self, step: int) -> None:
        plan, sequence = self.plan, self.plan.timeline.sequences(step)
        state = RunState(
            step=step,
            tokens=plan.timeline.tokens(step),
            sequence=sequence,
            fingerprint=plan.fingerprint,
            environment=self.environment,
            packing=self.stream.state(sequence) if isinstance(self.stream, PlannedStream) else None,
        )
        self.log.sync()
        self.checkpoint = save_checkpoint(
            self.out,
            self.model,
            self.optimizers,
            state,
            plan.tokens / "tokenizer",
            plan.train.keep_checkpoints,
            self.factors,
        )

    def _finish(self, record: dict[str, Any], seconds: float) -> dict[str, Any]:
        self.log.close()
        last = record or next(iter(read_metrics(self.out / "metrics.jsonl")[-1:]), {})
        for tracker in self.trackers:
            tracker.finish()
        summary = {
            "step": self.plan.train.steps,
            "tokens": self.plan.timeline.tokens(self.plan.train.steps),
            "loss": last.get("loss"),
            "bits_per_byte": last.get("bits_per_byte"),
            "checkpoint": str(self.checkpoint),
            "seconds": seconds,
            **self.plan.answers_only,
        }
        self.observer.on_end(summary)
        return summary

    def _info(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "step": self.state.step,
            "steps": plan.train.steps,
            "tokens_done": self.state.tokens,
            "tokens": plan.timeline.tokens(plan.train.steps),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "sets": list(plan.eval_sets),
            "out": str(self.out),
            "environment": self.environment,
        }
