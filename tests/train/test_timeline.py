"""The plan of a run by step: phases begin where they say, the batch grows evenly, the learning rate is continuous."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from pydantic import ValidationError

from trine.errors import BadInput
from trine.optim.config import ScheduleConfig
from trine.optim.schedule import lr_factor
from trine.train.config import TrainConfig
from trine.train.timeline import Timeline


def config(**changes: Any) -> TrainConfig:
    values = {"steps": 100, "sequence_length": 10, "batch_sequences": 8, "micro_batch_sequences": 2}
    return TrainConfig.model_validate(values | changes)


def test_a_plain_run_is_one_span_with_the_plain_schedule() -> None:
    schedule = ScheduleConfig(warmup_steps=7, decay_steps=31, decay="cosine", final_ratio=0.1)
    timeline = Timeline(config(), schedule)
    assert len(timeline.spans) == 1
    assert timeline.spans[0].train == config()
    for step in range(101):
        assert (timeline.tokens(step), timeline.sequences(step)) == (step * 80, step * 8)
    assert [timeline.lr_factor(s) for s in range(1, 101)] == [lr_factor(s, 100, schedule) for s in range(1, 101)]
    assert list(timeline.micro_batches(98)) == [2] * 12


def test_a_phase_begins_with_the_first_step_that_has_its_tokens_behind_it() -> None:
    phases = (
        {"begin_tokens": 1000, "sequence_length": 20, "batch_sequences": 4},
        {"begin_tokens": 1640, "micro_batch_sequences": 4, "packing": "rsdb"},
    )
    timeline = Timeline(config(phases=phases), ScheduleConfig())
    starts = [(span.phase, span.first_step, span.first_token, span.first_sequence) for span in timeline.spans]
    assert starts == [(0, 1, 0, 0), (1, 14, 1040, 104), (2, 22, 1680, 136)]
    last = timeline.span(100).train
    assert (last.sequence_length, last.batch_sequences, last.micro_batch_sequences) == (20, 4, 4)
    assert last.packing == "rsdb"
    assert timeline.tokens(100) == 1680 + 79 * 80
    assert list(timeline.micro_batches(20)) == [2, 2] * 2 + [4] * 79
    total = 0
    for step in range(1, 101):
        total += timeline.span(step).tokens_per_step
        assert timeline.tokens(step) == total


def test_a_batch_grows_evenly_over_its_tokens_in_whole_micro_batches() -> None:
    ramp = {"begin_sequences": 2, "tokens": 1200}
    timeline = Timeline(config(batch_ramp=ramp), ScheduleConfig())
    for step in range(1, 101):
        before, batch = timeline.tokens(step - 1), timeline.span(step).train.batch_sequences
        assert batch == min(8, 2 + 2 * math.floor(3 * before / 1200))
    assert timeline.sequences(100) * 10 == timeline.tokens(100)
    assert {span.train.batch_sequences for span in timeline.spans} == {2, 4, 6, 8}


def test_a_ramp_ends_where_the_next_phase_begins() -> None:
    phases = ({"begin_tokens": 300, "sequence_length": 20},)
    timeline = Timeline(config(batch_ramp={"begin_sequences": 2, "tokens": 10**6}, phases=phases), ScheduleConfig())
    sizes = [(span.phase, span.train.batch_sequences) for span in timeline.spans]
    assert sizes == [(0, 2), (1, 8)]


def test_re_warm_goes_from_where_the_run_was_to_its_peak_and_down() -> None:
    phases = ({"begin_tokens": 4000, "schedule": {"warmup_steps": 10, "peak_ratio": 0.1}},)
    timeline = Timeline(config(phases=phases), ScheduleConfig(warmup_steps=5, decay_steps=20))
    factors = [timeline.lr_factor(step) for step in range(1, 101)]
    assert factors[4] == factors[29] == 1.0
    assert factors[49] == 0.0
    assert factors[50:60] == pytest.approx([0.01 * k for k in range(1, 11)])
    assert factors[60:] == pytest.approx([0.1 * (1 - k / 40) for k in range(1, 41)])


def test_a_phase_can_go_on_with_the_cosine_where_the_run_left_it() -> None:
    schedule = ScheduleConfig(decay_steps=30, decay="cosine", final_ratio=0.1)
    own = {"peak_ratio": 0.1, "decay": "cosine", "final_ratio": 0.05}
    timeline = Timeline(config(phases=({"begin_tokens": 4000, "schedule": own},)), schedule)
    factors = [timeline.lr_factor(step) for step in range(1, 101)]
    assert factors[49] == pytest.approx(0.1)
    assert factors[50] == pytest.approx(0.05 + 0.05 * (1 + math.cos(math.pi / 50)) / 2)
    assert factors[99] == pytest.approx(0.05)
    assert all(later <= former for former, later in itertools.pairwise(factors[20:]))


def test_a_phase_shorter_than_a_step_or_after_the_end_has_no_steps() -> None:
    short = ({"begin_tokens": 990, "sequence_length": 20}, {"begin_tokens": 995, "sequence_length": 5})
    assert [span.phase for span in Timeline(config(phases=short), ScheduleConfig()).spans] == [0, 2]
    late = ({"begin_tokens": 10**9, "schedule": {}},)
    timeline = Timeline(config(phases=late), ScheduleConfig())
    assert [span.phase for span in timeline.spans] == [0]
    assert timeline.unreached() == [1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phases": ({"begin_tokens": 20}, {"begin_tokens": 20})}, "each must begin after the one before"),
        ({"phases": ({"begin_tokens": 20, "batch_sequences": 7},)}, "phases.0: batch_sequences 7 is not a multiple"),
        ({"batch_ramp": {"begin_sequences": 3, "tokens": 9}}, "must be a multiple of micro_batch_sequences 2"),
        ({"batch_ramp": {"begin_sequences": 10, "tokens": 9}}, "at most batch_sequences 8"),
        ({"mix": ({"source": "a", "share": 0.5},)}, "sum to 0.5"),
        ({"mix": ({"source": "a", "share": 0.5}, {"source": "a", "share": 0.5})}, "names a source twice"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**changes)


def test_a_phase_s_schedule_must_fit_into_the_phase() -> None:
    phases = ({"begin_tokens": 4000, "schedule": {"warmup_steps": 30, "decay_steps": 30}},)
    with pytest.raises(BadInput, match=r"train\.phases\.0\.schedule\..* exceed the steps .* the end, 50"):
        Timeline(config(phases=phases), ScheduleConfig())
