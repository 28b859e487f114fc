"""A finished run's records to the figures that a study compares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from trine.stability import kurtosis, spikes
from trine.train.config import BadBatchConfig

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Trained:
    """One run, as a measure sees it."""

    records: Records
    """One per step, in order."""
    bad_batches: BadBatchConfig | None = None


@dataclass(frozen=True)
class Measure:
    """A figure of a run. A `ratio` measure is compared by the ratio of two runs, another by their difference."""

    value: Callable[[Trained], float]
    title: str
    about: str
    ratio: bool = False


def held_out(records: Records) -> list[tuple[int, float]]:
    """(tokens, bits per byte) of every evaluation: the mean over the sets that were scored."""
    return [(one["tokens"], fmean(one["bits_per_byte"].values())) for one in records if one.get("bits_per_byte")]


def _bits(run: Trained) -> float:
    scored = held_out(run.records)
    return scored[-1][1] if scored else math.nan


def _last(run: Trained, share: float) -> Records:
    """The last part of the run, without planted batches."""
    kept = run.records[len(run.records) - max(1, round(len(run.records) * share)) :]
    return [one for one in kept if run.bad_batches is None or not run.bad_batches.planted(one["step"])]


def _mean(value: Callable[[dict[str, Any]], float | None], share: float) -> Callable[[Trained], float]:
    """The mean over the last part of the run of what a step has."""

    def mean(run: Trained) -> float:
        found = [one for record in _last(run, share) if (one := value(record)) is not None]
        return fmean(found) if found else math.nan

    return mean


def _loss_variance(run: Trained) -> float:
    """Half the mean square of the loss's step-to-step change: the variance of what is not trend."""
    changes = [(after["loss"] - before["loss"]) ** 2 for before, after in pairwise(_last(run, 0.5))]
    return fmean(changes) / 2 if changes else math.nan


def _kurtosis(run: Trained) -> float:
    value = kurtosis([one["grad_norm"] for one in _last(run, 0.5)])
    return math.nan if value is None else value


def _spikes(run: Trained) -> float:
    return float(len(spikes((one["step"], one["loss"]) for one in _last(run, 1.0))))


def bias_change(record: dict[str, Any]) -> float | None:
    """The mean over layers of the biases' root mean square move in a step; None without sparse layers."""
    moves = record.get("router", {}).get("bias_change")
    return fmean(moves) if moves else None


def _recovery(run: Trained) -> float:
    """Mean over the bursts of the steps after one until MaxVio is back at 1.2 times its median of the 20 before."""
    plan = run.bad_batches
    if plan is None:
        return math.nan
    vio = {one["step"]: one.get("max_vio", math.nan) for one in run.records}
    taken = []
    for begin in range(plan.every_steps, max(vio, default=0) + 1, plan.every_steps):
        first, last = begin + plan.burst_steps, begin + plan.every_steps - 1
        before = [vio[step] for step in range(begin - 20, begin) if step in vio and not plan.planted(step)]
        after = [step for step in range(first, last + 1) if step in vio]
        if before and after:
            limit = 1.2 * median(before)
            taken.append(next((step - first for step in after if vio[step] <= limit), len(after)))
    return fmean(taken) if taken else math.nan


def tokens_to(run: Trained, target: float) -> float:
    """Tokens after which held-out bits per byte first reach `target`, linear between evaluations; inf for never."""
    before: tuple[int, float] | None = None
    for tokens, bits in held_out(run.records):
        if bits <= target:
            if before is None:
                return tokens
            share = (before[1] - target) / (before[1] - bits)
            return before[0] + share * (tokens - before[0])
        before = (tokens, bits)
    return math.inf


def _all_tokens(run: Trained) -> float:
    return run.records[-1]["tokens"] if run.records else math.nan


MEASURES = {
    "bits_per_byte": Measure(_bits, "held-out bits/byte", "bits per byte of the held-out text at the end"),
    "loss": Measure(
        _mean(lambda one: one["loss"], 0.1),
        "loss",
        "training loss, mean of the last tenth of the steps, nats per token",
    ),
    "loss_variance": Measure(
        _loss_variance, "loss variance", "half the mean squared step-to-step change of the loss, second half", True
    ),
    "grad_norm_kurtosis": Measure(_kurtosis, "grad-norm kurtosis", "of the gradient norms of the second half", True),
    "spikes": Measure(
        _spikes,
        "loss spikes",
        "steps whose loss exceeds the median of the 128 before by six robust standard deviations",
    ),
    "batch_het": Measure(
        _mean(lambda one: one["batch_het"], 0.5), "BatchHet", "largest less mean micro-batch loss, second half", True
    ),
    "max_vio": Measure(
        _mean(lambda one: one.get("max_vio"), 0.5), "MaxVio", "mean over layers and the second half's steps", True
    ),
    "bias_change": Measure(
        _mean(bias_change, 0.25),
        "bias oscillation",
        "root mean square move of the selection biases per step, last quarter",
        True,
    ),
    "recovery_steps": Measure(
        _recovery, "steps to recover", "after a planted burst, until MaxVio is back at 1.2 times its median before it"
    ),
    "tokens_to_match": Measure(
        _all_tokens,
        "tokens to match",
        "tokens until the held-out bits per byte reach what the other arm has at its end",
        True,
    ),
}
"""Planted batches are left out of every mean, variance and count."""


def compare(name: str, run: Trained, other: Trained) -> float:
    """What one pair says: the difference run - other, or the natural logarithm of the ratio run / other."""
    measure = MEASURES[name]
    if name == "tokens_to_match":
        ours, theirs = tokens_to(run, _bits(other)), _all_tokens(other)
    else:
        ours, theirs = measure.value(run), measure.value(other)
    if not measure.ratio:
        return ours - theirs
    if math.isinf(ours):
        return ours
    return math.log(ours / theirs) if ours > 0 and theirs > 0 else math.nan
