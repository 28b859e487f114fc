"""Loss spikes and kurtosis against their formulas, and a follower that may be stopped."""

from __future__ import annotations

import random

import numpy
import pytest

from trine.stability import Stability, is_spike, kurtosis, spikes


def noise(count: int, seed: int = 0) -> list[float]:
    generator = random.Random(seed)
    return [3 + 0.1 * generator.gauss(0, 1) for _ in range(count)]


def test_a_spike_is_six_robust_deviations_above_the_median() -> None:
    before = noise(128)
    center = float(numpy.median(before))
    limit = center + 6 * 1.4826 * float(numpy.median(numpy.abs(numpy.array(before) - center)))
    assert is_spike(limit + 1e-9, before)
    assert not is_spike(limit - 1e-9, before)
    assert not is_spike(1000.0, before[1:])


def test_an_earlier_spike_does_not_hide_the_next() -> None:
    losses = noise(400)
    losses[200] = losses[210] = 9.0
    losses[300] = -9.0
    assert spikes(enumerate(losses, 1)) == [201, 211]


def test_kurtosis_is_the_fourth_standardised_moment() -> None:
    values = noise(128, seed=1)
    z = (numpy.array(values) - numpy.mean(values)) / numpy.std(values)
    assert kurtosis(values) == pytest.approx(float(numpy.mean(z**4)), rel=1e-9)
    assert kurtosis([1.0, -1.0] * 20) == pytest.approx(1.0)
    assert kurtosis(values[:15]) is None
    assert kurtosis([2.0] * 20) is None


@pytest.mark.parametrize("stop", [1, 100, 205, 399])
def test_a_follower_that_was_stopped_goes_on_the_same(stop: int) -> None:
    losses, norms = noise(400), noise(400, seed=2)
    losses[200] = losses[300] = 9.0
    whole = Stability()
    records = [
        {"loss": loss, "grad_norm": norm} | whole.add(loss, norm) for loss, norm in zip(losses, norms, strict=True)
    ]
    again = Stability(records[:stop])
    for record in records[stop:]:
        assert record == record | again.add(record["loss"], record["grad_norm"])
    assert records[-1]["spikes"] == 2
