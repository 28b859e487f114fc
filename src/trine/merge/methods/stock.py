"""Model Stock (Jang et al. 2024, arXiv:2403.19522): towards the fine-tunes' mean as far as their angle says."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.methods.combine import combination, inner_products
from trine.merge.methods.inputs import Block, Inputs, Kernel


def model_stock(inputs: Inputs) -> Kernel:
    """b + t (mean(x) - b) with t = N c / (1 + (N-1) c), c the mean cosine between differences from the base.

    Per tensor, or with `filter_wise` per row. With mergekit's numerics a product of norms below 1e-6 counts as 1e-6.
    """
    count = len(inputs.models)
    if inputs.shared["filter_wise"]:
        return lambda block: _by_rows(inputs, block)
    products = inner_products(inputs, "differences")
    pairs = [(products[i, j], products[i, i] * products[j, j]) for i, j in combinations(range(count), 2)]
    cosines = np.array([_cosine(inputs, *pair) for pair in pairs])
    share = float(_share(inputs, cosines.mean(axis=0), count)[0])
    if inputs.mergekit:
        return lambda block: _rounded(inputs, block, np.array(share))
    return combination(inputs, [share / count] * count, "differences")


def _cosine(inputs: Inputs, dot: Any, squares: Any) -> Any:
    smallest = 1e-6 if inputs.mergekit else np.finfo(np.float64).tiny
    norms = inputs.q(np.atleast_1d(np.sqrt(squares)))
    return np.clip(inputs.q(inputs.q(np.atleast_1d(dot)) / np.maximum(norms, smallest)), -1, 1)


def _share(inputs: Inputs, cosine: Array, count: int) -> Array:
    """t of N and the mean cosine."""
    cosine = inputs.q(cosine)
    below = inputs.q(1 + (count - 1) * cosine)
    singular = np.abs(below) < 1e-6
    return np.where(singular, 0, inputs.q(inputs.q(count * cosine) / np.where(singular, 1, below)))


def _by_rows(inputs: Inputs, block: Block) -> Array:
    assert block.base is not None
    models = [one.copy() for one in block.models]
    rows = [one.reshape(-1, inputs.columns) for one in inputs.deltas(block)]
    squares = [np.einsum("ij,ij->i", row, row, dtype=np.float64) for row in rows]
    cosines = [
        _cosine(inputs, np.einsum("ij,ij->i", rows[i], rows[j], dtype=np.float64), squares[i] * squares[j])
        for i, j in combinations(range(len(rows)), 2)
    ]
    share = np.repeat(_share(inputs, np.mean(cosines, axis=0), len(rows)), inputs.columns)
    return _rounded(inputs, Block(block.start, block.base, models), share)


def _rounded(inputs: Inputs, block: Block, share: Array) -> Array:
    """t mean + (1 - t) base, each step rounded where mergekit does."""
    assert block.base is not None
    share = inputs.q(share.astype(inputs.work).reshape(-1))
    total = block.models[0]
    for one in block.models[1:]:
        total = inputs.q(total + one)
    mean = inputs.q(total / inputs.work(len(block.models)))
    return inputs.q(inputs.q(share * mean) + inputs.q(inputs.q(1 - share) * block.base))
