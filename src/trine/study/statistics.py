"""Paired comparison over seeds: mean difference and its Student-t interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the interval that holds the true value in 95 of 100 such studies."""

    mean: float
    low: float
    high: float
    pairs: int

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside."""
        return not self.low <= value <= self.high


def paired_interval(differences: Sequence[float]) -> Interval:
    """mean(d) +- t(0.975, n - 1) * s / sqrt(n) over the paired differences d; unbounded for fewer than two."""
    n = len(differences)
    if n < 2:
        return Interval(differences[0] if n else math.nan, -math.inf, math.inf, n)
    mean = fmean(differences)
    half = t_quantile((1 + LEVEL) / 2, n - 1) * stdev(differences) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """The point below which Student's t with `freedom` degrees of freedom lies with `probability` >= 0.5."""
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: with t = sqrt(freedom) tan(a), the integral of cos(a)^(freedom - 1), by Simpson's rule."""
    angle, steps = math.atan(t / math.sqrt(freedom)), 2000
    values = [math.cos(angle * i / steps) ** (freedom - 1) for i in range(steps + 1)]
    area = angle / steps / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))
    density = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + density * area
