"""The paired bootstrap: models' means over the same items drawn again and again, and intervals of what follows.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals). Each draw takes
as many items as there are, with repetition, the same for every model, so what items have in common cancels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

DRAWS = 10_000
_INDICES = 1 << 22
"""Drawn items in memory at one time."""


def drawn_means(
    scores: Sequence[np.ndarray], weights: np.ndarray, seed: int, name: str, draws: int = DRAWS
) -> np.ndarray:
    """Weighted means [models, draws], fp64. Draws follow from `seed` and the set's `name`, whatever else is drawn."""
    count = len(weights)
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    rng = np.random.default_rng([seed, key])
    weights = np.asarray(weights, np.float64)
    sums = [np.asarray(one, np.float64) * weights for one in scores]
    found = np.empty((len(scores), draws))
    step = max(1, _INDICES // count)
    for first in range(0, draws, step):
        index = rng.integers(0, count, (min(step, draws - first), count))
        total = weights[index].sum(1)
        for model, one in enumerate(sums):
            found[model, first : first + step] = one[index].sum(1) / total
    return found


def gains(base: np.ndarray, new: np.ndarray, higher_is_better: bool) -> np.ndarray:
    """Relative change from `base` to `new`, positive where `new` is better; infinite where only the base is 0."""
    base, new = np.asarray(base, np.float64), np.asarray(new, np.float64)
    better = new - base if higher_is_better else base - new
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(better == 0, 0.0, better / np.abs(base))


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval; infinite values count as such."""
    ordered = np.sort(values)
    tail = (1 - level) / 2
    low = ordered[math.floor(tail * (len(ordered) - 1))]
    high = ordered[math.ceil((1 - tail) * (len(ordered) - 1))]
    return float(low), float(high)
