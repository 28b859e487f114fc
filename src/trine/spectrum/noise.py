"""The noise edge of a spectrum, by two measures.

`calibrated`: a matrix [n, m], n >= m, of independent noise of deviation sigma has singular values between
sigma (sqrt n - sqrt m) and sigma (sqrt n + sqrt m), spread as Marchenko and Pastur found. sigma is read off the median,
as by Gavish and Donoho (2014), among the values that are not signal. The edge is where the largest value of pure
noise passes in one of a thousand matrices (Johnstone 2001, with the centring of Ma 2012).
`published`: the procedure of Spectrum's published scans (Hartford et al. 2024), for comparison with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from trine.spectrum.singular import Values

_TRACY_WIDOM_999 = 3.2724
"""The 99.9 % quantile of the Tracy-Widom law of real matrices."""
_FEWEST = 8
"""Fewer singular values than this show no noise."""
_ANGLES = 1 << 15
_GAUSSIAN_IQR = 1.349


@dataclass(frozen=True)
class Measured:
    """What a measure finds; `snr`, `sigma` and `edge` are None where there is nothing to measure, `why` says so."""

    snr: float | None
    sigma: float | None
    """Deviation of the noise's entries; of `published`: of its singular values, as that procedure takes it."""
    edge: float | None
    """Singular values above it are signal."""
    rank: int
    """How many are."""
    share: float
    """Their part of the sum of squares."""
    error: float
    """The relative error of `snr`, at most."""
    unsure: bool
    """Whether values lie too near the edge, or are known too badly, to count them."""
    why: str | None = None


@lru_cache(4096)
def marchenko_pastur_median(beta: float) -> float:
    """Median of the eigenvalues of noise of unit variance, aspect ratio m/n = `beta` in (0, 1], divided by n."""
    angles = (torch.arange(_ANGLES, dtype=torch.float64) + 0.5) * (math.pi / _ANGLES)
    middle, half = 1 + beta, 2 * math.sqrt(beta)
    eigenvalues = middle - half * angles.cos()
    below = (angles.sin() ** 2 / eigenvalues).cumsum(0)
    below = below - (angles.sin() ** 2 / eigenvalues) / 2
    place = torch.searchsorted(below, below[-1] / 2)
    low, high = below[place - 1], below[place]
    angle = angles[place - 1] + (below[-1] / 2 - low) / (high - low) * (math.pi / _ANGLES)
    return middle - half * math.cos(float(angle))


def noise_edge(n: int, m: int) -> float:
    """The singular value of unit noise [n, m] that one matrix of a thousand exceeds."""
    a, b = math.sqrt(n - 0.5), math.sqrt(m - 0.5)
    return math.sqrt((a + b) ** 2 + _TRACY_WIDOM_999 * (a + b) * (1 / a + 1 / b) ** (1 / 3))


def calibrated(found: Values, shape: tuple[int, int]) -> Measured:
    """The signal-to-noise ratio: sum of singular values above the edge over the sum of those below. No dimension."""
    m, n, zeros = min(shape), max(shape), min(shape) - found.rank
    values = found.values[zeros:] if found.by != "gram" else found.values
    if found.by != "gram" and 2 * found.rank < m:
        why = f"rank {found.rank} of {m}: most singular values are zero, so there is no noise to measure against"
        return Measured(None, 0.0, 0.0, found.rank, 1.0, 0.0, False, why)
    if len(values) < _FEWEST:
        why = f"{len(values)} singular value(s); noise is told from signal by {_FEWEST} or more"
        return Measured(None, None, None, found.rank, 0.0, 0.0, False, why)
    sigma, edge = _fit(values, n)
    return _split(found, sigma, edge, 1.0, len(found.values) - len(values))


def _fit(values: Tensor, n: int) -> tuple[float, float]:
    """sigma and edge: signal is set aside and the rest measured again, until no more is found or half is set aside."""
    m, signal = len(values), 0
    while True:
        left, long = m - signal, n - signal
        median = float(values[:left].quantile(0.5))
        sigma = median / math.sqrt(long * marchenko_pastur_median(left / long))
        edge = sigma * noise_edge(long, left)
        above = int((values > edge).sum())
        if above <= signal or 2 * above > m:
            return sigma, edge
        signal = above


def published(found: Values, shape: tuple[int, int]) -> Measured:
    """sum(S > t) / sum(S <= t) / max(S), t = IQR(S) / 1.349 (1 + sqrt(beta)); a noise sum of zero counts as one."""
    values, scale = found.values, math.ldexp(1.0, found.exponent)
    sigma = float(values.quantile(0.75) - values.quantile(0.25)) / _GAUSSIAN_IQR
    edge = sigma * (1 + math.sqrt(min(shape) / max(shape)))
    below = values[values <= edge]
    if len(below) and float(below[-1]) <= found.floor:
        why = f"rank {found.rank} of {len(values)}: the noise of the published procedure is nothing but rounding"
        return Measured(None, 0.0, 0.0, found.rank, 1.0, 0.0, found.by == "gram", why)
    return _split(found, sigma, edge, float(values[-1]) * scale, 0, empty=1 / scale)


def _split(
    found: Values, sigma: float, edge: float, divisor: float, zeros: int, empty: float | None = None
) -> Measured:
    """Sums on both sides of the edge; `empty` stands for a noise sum of nothing."""
    values, scale = found.values, math.ldexp(1.0, found.exponent)
    above = values > edge
    signal, noise = float(values[above].sum()), float(values[~above].sum())
    near = ((values[zeros:] - edge).abs() <= 2 * found.error[zeros:]).any()
    error = sum(float(found.error[side].sum()) / whole for side, whole in ((above, signal), (~above, noise)) if whole)
    squares = values**2
    return Measured(
        signal / (noise or empty or math.inf) / divisor,
        sigma * scale,
        edge * scale,
        int(above.sum()),
        float(squares[above].sum() / squares.sum()),
        error,
        bool(near),
    )
