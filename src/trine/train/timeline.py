"""What each optimizer step of a run is made of, as a pure function of the config: batch, length, mix, learning rate.

A run without phases and ramp is one span. A phase begins with the first step that has `begin_tokens` tokens behind
it; a batch ramp makes a span of every batch size on its way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trine.optim.config import ScheduleConfig
from trine.optim.schedule import check_schedule, lr_factor
from trine.train.config import Mix, TrainConfig


@dataclass(frozen=True)
class Span:
    """Consecutive steps with the same settings."""

    phase: int
    """0 before the first phase."""
    train: TrainConfig
    """The settings; `batch_sequences` as the ramp has it."""
    first_step: int
    """Counted from 1."""
    steps: int
    first_token: int
    """Tokens before the span."""
    first_sequence: int

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one of its steps."""
        return self.train.batch_sequences * self.train.sequence_length

    @property
    def end_token(self) -> int:
        """Tokens after the span."""
        return self.first_token + self.steps * self.tokens_per_step


class Timeline:
    """The spans of a run, and the numbers of a step."""

    def __init__(self, train: TrainConfig, schedule: ScheduleConfig) -> None:
        """Raises BadInput when a schedule does not fit into its steps."""
        self.train = train
        self.spans = _spans(train)
        self._starts = [span.first_step for span in self.spans]
        self._schedules = self._segments(schedule)

    def span(self, step: int) -> Span:
        """The span of optimizer step `step`, counted from 1."""
        return self.spans[max(0, bisect_right(self._starts, step) - 1)]

    def tokens(self, step: int) -> int:
        """Tokens consumed once `step` steps are done."""
        span = self.span(step)
        return span.first_token + (step - span.first_step + 1) * span.tokens_per_step

    def sequences(self, step: int) -> int:
        """Sequences consumed once `step` steps are done: the index of the next."""
        span = self.span(step)
        return span.first_sequence + (step - span.first_step + 1) * span.train.batch_sequences

    def flops(self, per_token: Mapping[int, float]) -> float:
        """Floating-point operations of the whole run, of those per token by sequence length."""
        return sum(span.steps * span.tokens_per_step * per_token[span.train.sequence_length] for span in self.spans)

    def micro_batches(self, step: int) -> Iterator[int]:
        """Rows of each micro-batch from step `step` to the end of the run."""
        for number in range(step, self.train.steps + 1):
            train = self.span(number).train
            yield from [train.micro_batch_sequences] * (train.batch_sequences // train.micro_batch_sequences)

    def lr_factor(self, step: int) -> float:
        """Factor on the peak learning rates in `step`."""
        first, steps, schedule, begin = [one for one in self._schedules if one[0] <= step][-1]
        return lr_factor(step - first + 1, steps, schedule, begin)

    def unreached(self) -> list[int]:
        """Numbers, counted from 1, of the phases that would begin at or after the end of the run."""
        return list(range(self.spans[-1].phase + 1, len(self.train.phases) + 1))

    def mixed_tokens(self) -> list[tuple[Mix | None, int]]:
        """Each mix and the tokens that are drawn from it."""
        return [(span.train.mix, span.end_token - span.first_token) for span in self.spans]

    def _segments(self, schedule: ScheduleConfig) -> list[tuple[int, int, ScheduleConfig, float]]:
        """(first step, steps, schedule, factor before it) of each stretch of the run that has its own schedule."""
        found: list[tuple[int, str, ScheduleConfig]] = [(1, "optim.schedule", schedule)]
        begins = {span.phase: span.first_step for span in reversed(self.spans)}
        for number, phase in enumerate(self.train.phases, 1):
            if phase.schedule is not None and number in begins:
                found.append((begins[number], f"train.phases.{number - 1}.schedule", phase.schedule))
        ends = [first for first, _, _ in found[1:]] + [self.train.steps + 1]
        segments, begin = [], 0.0
        for (first, name, one), end in zip(found, ends, strict=True):
            until = "train.steps" if len(found) == 1 else "the steps until the next schedule or the end,"
            check_schedule(end - first, one, name, until)
            segments.append((first, end - first, one, begin))
            begin = lr_factor(end - first, end - first, one, begin)
        return segments


def _spans(train: TrainConfig) -> list[Span]:
    settings = train.settings()
    begins = [0, *(phase.begin_tokens for phase in train.phases)]
    spans: list[Span] = []
    step, token, sequence = 1, 0, 0
    for phase, setting in enumerate(settings):
        end = begins[phase + 1] if phase + 1 < len(begins) else None
        begun = token
        for batch, until in _batches(setting):
            per_step = batch * setting.sequence_length
            limits = [one for one in (end, None if until is None else begun + until) if one is not None]
            left = train.steps - step + 1
            steps = left if not limits else min(left, max(0, -(-(min(limits) - token) // per_step)))
            if steps:
                at = setting.model_copy(update={"batch_sequences": batch})
                spans.append(Span(phase, at, step, steps, token, sequence))
            step, token, sequence = step + steps, token + steps * per_step, sequence + steps * batch
    return spans


def _batches(train: TrainConfig) -> Iterator[tuple[int, int | None]]:
    """Batch sizes of a phase in order, each with the tokens of the phase up to which it holds; None: to the end."""
    ramp, full = train.batch_ramp, train.batch_sequences
    if ramp is not None:
        for batch in range(ramp.begin_sequences, full, train.micro_batch_sequences):
            after = batch + train.micro_batch_sequences - ramp.begin_sequences
            yield batch, -(-ramp.tokens * after // (full - ramp.begin_sequences))
    yield full, None
