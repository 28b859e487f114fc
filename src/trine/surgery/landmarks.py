"""Tokens that only one model has, as combinations of tokens that both have.

The combination is found in the donor's space, where every token has a row, and used in the model's, where only the
shared ones do (the landmarks). Orthogonal matching pursuit (Pati, Rezaiifar & Krishnaprasad 1993) takes the landmark
that points most along what is left of a row, fits the row by least squares to all taken so far, and goes on; common
interpolation takes the nearest landmarks, weighted by the inverse of their distance.

Memory: `batch_rows` targets with k rows each, and a block of landmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trine.surgery.tables import block_rows

_BATCH_BYTES = 256 << 20
_MOST_TARGETS = 1024
_SMALLEST_DISTANCE = 1e-6
_NOTHING = 1e-6
"""What is left of a vector below this share of its norm is rounding."""

Combination = tuple[Tensor, Tensor]
"""Numbers of landmarks [targets, k] and their coefficients in fp32 [targets, k]."""
Method = Callable[["Landmarks", Tensor, int], Combination]


@dataclass(frozen=True)
class Landmarks:
    """The rows of shared tokens in a table [tokens, width]."""

    table: Tensor
    ids: Tensor
    """Row of each landmark in the table."""

    def rows(self, which: Tensor) -> Tensor:
        """Rows of landmarks by their numbers, in fp32."""
        return self.table[self.ids[which]].float()

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(number of the first, rows in fp32) over all landmarks."""
        if self._step >= len(self.ids):
            yield 0, self._whole
            return
        for start in range(0, len(self.ids), self._step):
            yield start, self.table[self.ids[start : start + self._step]].float()

    @property
    def _step(self) -> int:
        return block_rows(self.table.shape[1])

    @cached_property
    def _whole(self) -> Tensor:
        return self.table[self.ids].float()


def batch_rows(width: int, k: int) -> int:
    """Targets of one call whose memory is bounded."""
    return max(1, min(_MOST_TARGETS, _BATCH_BYTES // (4 * width * (k + 4))))


def pursuit(landmarks: Landmarks, targets: Tensor, k: int) -> Combination:
    """Orthogonal matching pursuit of fp32 targets [B, D], k landmarks each.

    A target that fewer landmarks give exactly, or whose next landmark depends on those taken, has coefficients 0 for
    the rest.
    """
    count, width = targets.shape
    basis, upper = targets.new_zeros(count, k, width), targets.new_zeros(count, k, k)
    along = targets.new_zeros(count, k)
    taken = torch.full((count, k), -1)
    left, size = targets.clone(), targets.norm(dim=1)
    for t in range(k):
        taken[:, t] = _most_along(landmarks, left, taken[:, :t])
        atom = landmarks.rows(taken[:, t])
        rest = atom.clone()
        for _ in range(2):  # once leaves rounding of the first pass in
            share = torch.einsum("btd,bd->bt", basis[:, :t], rest)
            rest -= torch.einsum("bt,btd->bd", share, basis[:, :t])
            upper[:, :t, t] += share
        length = rest.norm(dim=1)
        done = (length <= _NOTHING * atom.norm(dim=1)) | (left.norm(dim=1) <= _NOTHING * size)
        upper[:, :t, t] *= ~done[:, None]
        upper[:, t, t] = torch.where(done, 1.0, length)
        basis[:, t] = torch.where(done[:, None], 0.0, rest / length.clamp_min(1e-30)[:, None])
        along[:, t] = (basis[:, t] * left).sum(1)
        left -= along[:, t, None] * basis[:, t]
    coefficients = torch.linalg.solve_triangular(upper, along[..., None], upper=True)[..., 0]
    return taken, coefficients


def _most_along(landmarks: Landmarks, left: Tensor, taken: Tensor) -> Tensor:
    """The landmark of the largest inner product with each row of `left`, none of those taken."""
    best, found = left.new_full((len(left),), -1.0), torch.zeros(len(left), dtype=torch.long)
    for start, rows in landmarks.blocks():
        products = (left @ rows.T).abs_()
        here = (taken >= start) & (taken < start + len(rows))
        target, place = here.nonzero(as_tuple=True)
        products[target, taken[target, place] - start] = -1.0
        most, index = products.max(dim=1)
        better = most > best
        best, found = torch.where(better, most, best), torch.where(better, index + start, found)
    return found


def interpolation(landmarks: Landmarks, targets: Tensor, k: int) -> Combination:
    """The k landmarks nearest to each fp32 target [B, D]; weights go by the inverse of their distance and sum to 1."""
    near = targets.new_full((len(targets), 0), 0.0)
    found = torch.zeros(len(targets), 0, dtype=torch.long)
    for start, rows in landmarks.blocks():
        distances = rows.square().sum(1) - 2 * targets @ rows.T
        near = torch.cat([near, distances], dim=1)
        found = torch.cat([found, torch.arange(start, start + len(rows)).expand(len(targets), -1)], dim=1)
        near, order = near.topk(min(k, near.shape[1]), dim=1, largest=False)
        found = found.gather(1, order)
    exact = torch.stack([(landmarks.rows(found[:, i]) - targets).norm(dim=1) for i in range(k)], dim=1)
    weights = 1 / exact.clamp_min(_SMALLEST_DISTANCE)
    return found, weights / weights.sum(dim=1, keepdim=True)


def combined(landmarks: Landmarks, combination: Combination) -> Tensor:
    """The combinations' rows in another space, fp32 [targets, width]."""
    which, coefficients = combination
    out = torch.zeros(len(which), landmarks.table.shape[1])
    for i in range(which.shape[1]):
        out += coefficients[:, i, None] * landmarks.rows(which[:, i])
    return out


METHODS: dict[str, Method] = {"omp": pursuit, "common-interpolation": interpolation}
