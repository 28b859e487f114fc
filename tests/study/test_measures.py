"""What each measure says of records whose answer is known."""

from __future__ import annotations

import math
import random
from typing import Any, get_args

import pytest

from tests.conftest import ROOT
from trine.study.config import MeasureName
from trine.study.measures import MEASURES, Trained, compare, held_out, tokens_to
from trine.train.config import BadBatchConfig


def records(steps: int, **curves: Any) -> list[dict[str, Any]]:
    """One record per step; a curve is a function of the step."""
    return [{"step": i, "tokens": 10 * i} | {key: f(i) for key, f in curves.items()} for i in range(1, steps + 1)]


def scored(*points: tuple[int, float]) -> Trained:
    return Trained([{"step": t, "tokens": t, "loss": 1.0, "bits_per_byte": {"a": bits}} for t, bits in points])


def test_every_name_has_a_measure() -> None:
    assert set(get_args(MeasureName)) == set(MEASURES)


def test_bits_per_byte_is_the_last_mean_over_sets() -> None:
    run = Trained(
        [{"tokens": 1, "bits_per_byte": {"a": 9, "b": 9}}, {"tokens": 2, "bits_per_byte": {"a": 2.0, "b": 3.0}}]
    )
    assert MEASURES["bits_per_byte"].value(run) == 2.5
    assert held_out(run.records)[-1] == (2, 2.5)


def test_loss_variance_sees_noise_and_not_the_trend() -> None:
    draw = random.Random(1)
    noise = [draw.gauss(0, 0.3) for _ in range(4001)]
    run = Trained(records(4000, loss=lambda i: 5 - i / 4000 + noise[i]))
    assert MEASURES["loss_variance"].value(run) == pytest.approx(0.09, rel=0.1)


def test_means_take_the_second_half_without_planted_batches() -> None:
    plan = BadBatchConfig(every_steps=10, burst_steps=2)
    vio = records(40, max_vio=lambda i: 50.0 if plan.planted(i) else 7.0 if i <= 20 else 2.0)
    assert MEASURES["max_vio"].value(Trained(vio, plan)) == 2.0
    assert MEASURES["max_vio"].value(Trained(vio)) > 2.0


def test_planted_batches_are_no_loss_spikes_of_the_run() -> None:
    plan = BadBatchConfig(every_steps=150, burst_steps=2)
    run = records(300, loss=lambda i: 30.0 if plan.planted(i) or i == 170 else 3.0 + (i % 3) / 100)
    assert MEASURES["spikes"].value(Trained(run, plan)) == 1
    assert MEASURES["spikes"].value(Trained(run)) == 4
    assert MEASURES["loss"].value(Trained(run, plan)) == pytest.approx(3.01, abs=0.005)


def test_bias_change_is_the_mean_over_layers_of_the_last_quarter() -> None:
    moves = records(40, router=lambda i: {"bias_change": [1.0, 3.0] if i > 30 else [9.0, 9.0]})
    assert MEASURES["bias_change"].value(Trained(moves)) == 2.0


def test_recovery_counts_the_steps_until_balance_is_back() -> None:
    plan = BadBatchConfig(every_steps=50, burst_steps=3)
    delays = {50: 4, 100: 8}

    def vio(step: int) -> float:
        begin = step // 50 * 50
        return 9.0 if begin and step < begin + 3 + delays[begin] else 1.0

    assert MEASURES["recovery_steps"].value(Trained(records(149, max_vio=vio), plan)) == 6.0
    assert math.isnan(MEASURES["recovery_steps"].value(Trained(records(149, max_vio=vio))))


def test_a_burst_that_is_never_recovered_from_counts_to_the_next() -> None:
    plan = BadBatchConfig(every_steps=50, burst_steps=3)
    run = Trained(records(99, max_vio=lambda i: 9.0 if i >= 50 else 1.0), plan)
    assert MEASURES["recovery_steps"].value(run) == 47


def test_tokens_to_a_loss_are_interpolated_between_evaluations() -> None:
    run = scored((100, 4.0), (200, 3.0), (300, 2.0))
    assert tokens_to(run, 2.5) == 250
    assert tokens_to(run, 4.5) == 100
    assert tokens_to(run, 1.0) == math.inf


def test_comparisons_are_differences_or_logarithms_of_ratios() -> None:
    fast, slow = scored((100, 4.0), (200, 2.0), (400, 1.0)), scored((100, 4.0), (400, 2.0))
    assert compare("bits_per_byte", fast, slow) == -1.0
    assert compare("tokens_to_match", fast, slow) == pytest.approx(math.log(200 / 400))
    assert compare("tokens_to_match", slow, fast) == math.inf
    one, two = (Trained(records(10, batch_het=lambda i, v=v: v)) for v in (0.3, 0.6))
    assert compare("batch_het", one, two) == pytest.approx(math.log(0.5))


def test_the_documentation_lists_every_measure_and_how_it_is_compared() -> None:
    text = (ROOT / "docs" / "studies.md").read_text()
    for name, measure in MEASURES.items():
        assert f"| `{name}` | {'ratio' if measure.ratio else 'difference'} |" in text
