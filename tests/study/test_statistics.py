"""Student's t and the paired interval against published quantiles and the formula."""

from __future__ import annotations

import math
import random
from statistics import fmean, stdev

import pytest

from trine.study.statistics import paired_interval, t_quantile


@pytest.mark.parametrize(
    ("probability", "freedom", "published"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 4, 2.77645),
        (0.975, 9, 2.26216),
        (0.95, 7, 1.89458),
        (0.995, 30, 2.75000),
        (0.975, 200, 1.97190),
    ],
)
def test_quantiles_are_the_published_ones(probability: float, freedom: int, published: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(published, rel=1e-5)


def test_the_interval_is_that_of_the_formula() -> None:
    differences = [0.3, -0.1, 0.25]
    found = paired_interval(differences)
    half = 4.30265 * stdev(differences) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((fmean(differences) - half, fmean(differences) + half), rel=1e-5)
    assert not found.excludes(0)
    assert found.excludes(1)


def test_the_interval_holds_the_mean_in_95_of_100_cases() -> None:
    draw = random.Random(0)
    held = sum(not paired_interval([draw.gauss(2, 3) for _ in range(3)]).excludes(2) for _ in range(400))
    assert 0.92 <= held / 400 <= 0.98


def test_fewer_than_two_pairs_tell_nothing() -> None:
    assert paired_interval([0.5]).low == -math.inf
    assert not paired_interval([0.5]).excludes(100)
    assert math.isnan(paired_interval([]).mean)
