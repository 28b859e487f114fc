"""Is a run stable? Loss spikes and the kurtosis of gradient norms, defined once for metrics, live view and report."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

WINDOW = 128
"""Steps that a step is judged by."""
_DEVIATIONS = 6.0
_MAD_TO_SIGMA = 1.4826
_FEWEST = 16


def is_spike(loss: float, before: Sequence[float]) -> bool:
    """Whether `loss` exceeds the median of the losses `before` by six robust standard deviations.

    A robust deviation is 1.4826 times the median absolute deviation from the median, which is the standard
    deviation of normal noise. With fewer than 128 losses before, while the first fall lasts, nothing is a spike.
    """
    if len(before) < WINDOW:
        return False
    center = median(before)
    sigma = _MAD_TO_SIGMA * median(abs(value - center) for value in before)
    return loss > center + _DEVIATIONS * sigma


def kurtosis(values: Sequence[float]) -> float | None:
    """Fourth standardised moment E[(x - m)^4] / E[(x - m)^2]^2, 3 for normal noise; None below 16 values."""
    if len(values) < _FEWEST:
        return None
    mean = fmean(values)
    variance = fmean((value - mean) ** 2 for value in values)
    return fmean((value - mean) ** 4 for value in values) / variance**2 if variance**2 > 0 else None


class Stability:
    """Follows a run step by step; `records` of metrics.jsonl are what it has seen already."""

    def __init__(self, records: Sequence[dict[str, Any]] = ()) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._spikes = 0
        for record in records[-WINDOW:]:
            self.add(record["loss"], record["grad_norm"])
        if records:
            self._spikes = records[-1].get("spikes", self._spikes)

    def add(self, loss: float, grad_norm: float) -> dict[str, Any]:
        """`spikes` of the run so far and `grad_norm_kurtosis` of the last 128 steps, both with this step."""
        self._spikes += is_spike(loss, self._losses)
        self._losses.append(loss)
        self._norms.append(grad_norm)
        return {"spikes": self._spikes, "grad_norm_kurtosis": kurtosis(self._norms)}


def spikes(points: Iterable[tuple[int, float]]) -> list[int]:
    """The steps among (step, loss) that are spikes."""
    before: deque[float] = deque(maxlen=WINDOW)
    found = []
    for step, loss in points:
        if is_spike(loss, before):
            found.append(step)
        before.append(loss)
    return found
