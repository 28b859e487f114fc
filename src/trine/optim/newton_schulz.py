"""The orthogonal factor of a matrix by Newton-Schulz iteration: matrix products only.

For G = U S V^T the result approximates U V^T. Each iteration maps every singular value x, at once, to
p(x) = a x + b x^3 + c x^5, without computing one. The coefficients of iteration k are the minimax fit of p to 1
on the interval that iteration k - 1 leaves (the best odd quintic there is for that interval), derived below in
float64 by Remez exchange, starting from singular values in [3e-3, 1]. After five iterations that interval has
shrunk to within a few bf16 roundings of 1 (see the test). Smaller singular values stay between 0 and 1; they
carry next to nothing of G.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

_SMALLEST = 3e-3
"""Relative singular value from which the fit holds."""
_SLACK = 0.01
"""Each interval is widened by this share: bf16 rounding moves a singular value by up to about 2^-8."""
_CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 27}
"""Matrices are processed in stacks of at most this many elements, by device: on CPU a stack stays in cache, on CUDA it
keeps the device busy and its temporaries below a gigabyte each."""


@lru_cache
def coefficients(steps: int) -> tuple[tuple[float, float, float], ...]:
    """(a, b, c) of each of `steps` iterations."""
    low, high, found = _SMALLEST, 1.0, []
    for _ in range(steps):
        a, b, c, error = _minimax_quintic(low * (1 - _SLACK), high * (1 + _SLACK))
        found.append((a, b, c))
        low, high = 1 - error, 1 + error
    return tuple(found)


def _minimax_quintic(low: float, high: float) -> tuple[float, float, float, float]:
    """a, b, c and the largest |1 - a x - b x^3 - c x^5| on [low, high]: Remez exchange on four points."""
    points = torch.tensor([low, 0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high, high], dtype=torch.float64)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    solution = torch.zeros(4, dtype=torch.float64)
    for _ in range(30):
        system = torch.stack((points, points**3, points**5, signs), dim=1)
        solution = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64))
        a, b, c, _ = solution.tolist()
        root = (9 * b * b - 20 * a * c) ** 0.5
        inner = sorted(((-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)))
        points[1], points[2] = inner[0] ** 0.5, inner[1] ** 0.5
    a, b, c, error = solution.tolist()
    return a, b, c, abs(error)


@torch.no_grad()
def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """The approximate orthogonal factor of each matrix of [..., rows, columns], same shape and dtype.

    Computed in bf16 (float64 input in float64, for references). A zero matrix gives zeros.
    """
    rows, columns = matrices.shape[-2:]
    flat = matrices.reshape(-1, rows, columns)
    per_chunk = max(1, _CHUNK_ELEMENTS[matrices.device.type] // (rows * columns))
    done = [_iterate(chunk, steps) for chunk in flat.split(per_chunk)]
    return torch.cat(done).view(matrices.shape).to(matrices.dtype)


def _iterate(stack: Tensor, steps: int) -> Tensor:
    compute = torch.float64 if stack.dtype == torch.float64 else torch.bfloat16
    x = stack.mT if stack.shape[-2] > stack.shape[-1] else stack
    norm = torch.linalg.matrix_norm(x.to(torch.promote_types(x.dtype, torch.float32)), keepdim=True)
    x = (x / norm.clamp_min(1e-30)).to(compute)
    for a, b, c in coefficients(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if stack.shape[-2] > stack.shape[-1] else x
