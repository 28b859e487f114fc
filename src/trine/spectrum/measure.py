"""One matrix to what a scan says of it: by the Gram matrix, in more digits or by QR where that leaves too few."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trine.spectrum.noise import Measured, calibrated, published
from trine.spectrum.singular import CPU, Values, by_gram, by_qr, look

Measure = Literal["calibrated", "published"]
BINS = 64
ACCURACY = 6e-6
"""The stated error of an SNR, relative, beyond which singular values are computed in more digits. True errors are a
quarter of it or less, so that scaling a matrix moves its SNR by about 1e-6 at most."""
_NEARLY_SQUARE = 2
"""Below this ratio of its sides a matrix has singular values so near zero that fp32 rarely does, and its Gram matrix is
cheap beside the eigenvalues."""
_MOST_UNKNOWN = 0.02
"""The part of a matrix's singular values that may be lost in rounding before that."""


@dataclass(frozen=True)
class Result:
    """Numbers for the scan's file, how they were computed, and what is wrong with the matrix, if anything."""

    numbers: dict[str, Any]
    by: str
    error: float
    problem: str | None
    largest: float | None = None
    """The largest singular value; None where there is none or it is beyond fp64."""


def measure_matrix(matrix: Tensor, measure: Measure, device: torch.device = CPU) -> Result:
    """`matrix`: [rows, columns] of any float type, read block by block. Every result is finite or None."""
    size, wrong = look(matrix, device)
    if wrong:
        numbers: dict[str, Any] = dict.fromkeys(("snr", "sigma", "edge", "rank", "share", "histogram"))
        return Result(numbers, "none", 0.0, f"{wrong:,} of {matrix.numel():,} values are NaN or infinite")
    if size == 0:
        numbers = {"snr": None, "sigma": 0.0, "edge": 0.0, "rank": 0, "share": 0.0}
        histogram = [min(matrix.shape)] + [0] * (BINS - 1)
        return Result(numbers | {"histogram": histogram}, "none", 0.0, "every value is zero", 0.0)
    found, measured = singular_values(matrix, size, measure, device)
    numbers = {name: getattr(measured, name) for name in ("snr", "sigma", "edge", "rank", "share")}
    problem = measured.why
    if any(value is not None and not math.isfinite(value) for value in numbers.values()):
        problem = f"its {measure} measure is beyond fp64"
        numbers |= {name: None for name, value in numbers.items() if value is not None and not math.isfinite(value)}
    top = float(torch.ldexp(found.values[-1], torch.tensor(found.exponent)))
    largest = top if math.isfinite(top) else None
    return Result(numbers | {"histogram": _histogram(found)}, found.by, measured.error, problem, largest)


def singular_values(
    matrix: Tensor, largest: float, measure: Measure, device: torch.device = CPU
) -> tuple[Values, Measured]:
    """By the cheapest way that leaves digits enough for `measure`, with what that says; arguments as of `by_gram`."""
    rule = calibrated if measure == "calibrated" else published
    shape = (matrix.shape[0], matrix.shape[1])
    if max(shape) < _NEARLY_SQUARE * min(shape):
        return _finely(matrix, largest, rule, device)
    found = by_gram(matrix, largest, torch.float32, device)
    if len(found.values) - found.rank <= _MOST_UNKNOWN * len(found.values):
        measured = rule(found, shape)
        if not measured.unsure and measured.error <= ACCURACY:
            return found, measured
    return _finely(matrix, largest, rule, device)


def _finely(
    matrix: Tensor, largest: float, rule: Callable[[Values, tuple[int, int]], Measured], device: torch.device
) -> tuple[Values, Measured]:
    shape = (matrix.shape[0], matrix.shape[1])
    found = by_gram(matrix, largest, torch.float64, device)
    measured = rule(found, shape)
    if not measured.unsure and measured.error <= ACCURACY:
        return found, measured
    found = by_qr(matrix, largest, device)
    return found, rule(found, shape)


def _histogram(found: Values) -> list[int]:
    """Counts of singular values in 64 equal bins over [0, the largest]."""
    counts = torch.histc(found.values, BINS, 0.0, float(found.values[-1]))
    return [int(count) for count in counts]
