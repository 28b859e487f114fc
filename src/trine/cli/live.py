"""What a person sees while work goes on, on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_EVERY_SECONDS = 5.0


@contextmanager
def watching() -> Iterator[Plain | Bars]:
    """The view that fits stderr, open for the duration of the block."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield Plain(console)
        return
    with Progress(
        TextColumn("{task.description:9}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        console=console,
    ) as bars:
        yield Bars(bars)


class Plain:
    """A line at the start and end of each piece of work, and every five seconds between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[str, float] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._steps, self._began, self._first = 0, 0.0, 0

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def progress(self, done: int, total: int | None, what: str) -> None:
        stage, now = what.partition(":")[0], time.monotonic()
        self._begun.setdefault(stage, (now, done))
        if done == total or now - self._last.setdefault(stage, now) >= _EVERY_SECONDS:
            self._last[stage] = now
            line = f"{stage:9} {done:,}/{'?' if total is None else f'{total:,}'}{what[len(stage) + 1 :]}"
            self._line(line + self._left(stage, done, total, now))

    def _left(self, stage: str, done: int, total: int | None, now: float) -> str:
        """`  ETA M:SS`, at the speed since the stage began; empty when nothing can be said."""
        begun, first = self._begun[stage]
        if total is None or not first < done < total:
            return ""
        return f"  ETA {clock((now - begun) / (done - first) * (total - done))}"

    def on_start(self, info: dict[str, Any]) -> None:
        self._steps, self._first, self._began = info["steps"], info["step"], time.monotonic()
        self._line(f"train     {describe(info)}")

    def on_step(self, record: dict[str, Any]) -> None:
        now, step = time.monotonic(), record["step"]
        due = now - self._last.get("train", 0.0) >= _EVERY_SECONDS
        if due or "bits_per_byte" in record or step == self._steps:
            self._last["train"] = now
            left = (now - self._began) / max(1, step - self._first) * (self._steps - step)
            self._line(f"train     {step:,}/{self._steps:,} {health(record)}  ETA {clock(left)}")

    def on_event(self, text: str) -> None:
        self._line(f"note      {text}")

    def on_end(self, summary: dict[str, Any]) -> None:
        self._line(f"train     done in {clock(summary['seconds'])}, checkpoint {summary['checkpoint']}")


class Bars:
    """One bar per stage; the training bar carries loss, speed and router health."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def progress(self, done: int, total: int | None, what: str) -> None:
        stage, _, note = what.partition(":")
        self._update(stage, done, total, note.strip())

    def _update(self, stage: str, done: int, total: int | None, note: str) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)

    def on_start(self, info: dict[str, Any]) -> None:
        self._bars.console.print(f"train     {describe(info)}", markup=False)
        self._update("train", info["step"], info["steps"], "")

    def on_step(self, record: dict[str, Any]) -> None:
        task = self._tasks["train"]
        self._bars.update(task, completed=record["step"], note=health(record))
        if "bits_per_byte" in record:
            self._bars.console.print(f"          step {record['step']:,}: {health(record)}", markup=False)

    def on_event(self, text: str) -> None:
        self._bars.console.print(f"note      {text}", markup=False)

    def on_end(self, summary: dict[str, Any]) -> None:
        text = f"train     done in {clock(summary['seconds'])}, checkpoint {summary['checkpoint']}"
        self._bars.console.print(text, markup=False)


def describe(info: dict[str, Any]) -> str:
    """A run's size in one line."""
    begin = f"from step {info['step']:,}, " if info["step"] else ""
    return (
        f"{begin}{info['parameters']:,} parameters, {info['steps']:,} steps, {info['tokens']:,} tokens, "
        f"{info['environment']['device']}, {info['environment']['threads']} threads"
    )


def health(record: dict[str, Any]) -> str:
    """Loss, speed, router health and bits per byte of one step."""
    parts = [f"loss {record['loss']:.3f}", f"{record['tokens_per_second']:,.0f} tokens/s"]
    if "max_vio" in record:
        dead = sum(record["router"]["dead"])
        parts.append(f"MaxVio {record['max_vio']:.2f}" + (f", {dead} dead experts" if dead else ""))
    if "mfu" in record:
        parts.insert(2, f"MFU {record['mfu']:.0%}")
    if record.get("spikes"):
        parts.append(f"{record['spikes']} loss spike" + ("s" if record["spikes"] > 1 else ""))
    for name, value in record.get("bits_per_byte", {}).items():
        parts.append(
            f"{name} {value:.3f} bits/byte" + (" of answers" if name in record.get("answers_only", ()) else "")
        )
    for name, one in record.get("choices", {}).items():
        parts.append(f"{name} {one['accuracy']:.0%} of {one['questions']} answers found (chance {one['chance']:.0%})")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as M:SS or H:MM:SS."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
