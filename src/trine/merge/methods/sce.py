"""SCE (Wan et al. 2024, arXiv:2408.07990): select high variance, calculate weights, erase minority signs."""

from __future__ import annotations

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.fused import fused
from trine.merge.methods.inputs import Block, Inputs, Kernel, base_only
from trine.merge.methods.select import ALL, Cut, largest


def sce(inputs: Inputs) -> Kernel:
    """b + sum(w d s) / sum(w s): d the differences, w their mean square over the tensor, s the majority's sign only.

    `select_topk` keeps that share of the elements whose variance over the models is not zero, the largest variances.
    With mergekit's numerics the weights are equal when mean squares sum to less than 1e-6.
    """
    if not inputs.models:
        return base_only
    cut, kernels = _cut(inputs), fused(inputs, inputs.models, inputs.base)
    squares = kernels.squares(*cut) if kernels else _squares(inputs, cut)
    weights = [inputs.qs(one) for one in _weights(inputs, squares)]
    smallest = inputs.qs(1e-6) if inputs.mergekit else np.finfo(inputs.work).tiny
    if kernels:
        return kernels.sce(*cut, weights, float(smallest))

    def kernel(block: Block) -> Array:
        assert block.base is not None
        q, deltas = inputs.q, _selected(inputs, block, cut)
        majority = q(np.sum(deltas, axis=0)) >= 0
        above, below = np.zeros_like(block.base), np.zeros_like(block.base)
        for weight, delta in zip(weights, deltas, strict=True):
            agree = np.where(majority, delta > 0, delta < 0)
            above += q(delta * weight) * agree
            below += weight * agree
        return q(block.base + q(q(above) / np.maximum(q(below), smallest)))

    return kernel


def _selected(inputs: Inputs, block: Block, cut: Cut) -> list[Array]:
    deltas = inputs.deltas(block)
    if cut is ALL:
        return deltas
    keep = cut.mask(_variance(inputs, deltas), block.start)
    return [delta * keep for delta in deltas]


def _variance(inputs: Inputs, deltas: list[Array]) -> Array:
    count = inputs.work(len(deltas))
    mean = deltas[0].copy()
    for delta in deltas[1:]:
        mean += delta
    mean /= count
    total = np.zeros_like(mean)
    for delta in deltas:
        total += np.square(delta - mean)
    total /= count
    return inputs.q(total)


def _cut(inputs: Inputs) -> Cut:
    kernels = fused(inputs, inputs.models, inputs.base)

    def variances(start: int, stop: int) -> list[Array]:
        return [_variance(inputs, inputs.deltas(inputs.block(start, stop)))]

    scores = kernels.scores(variance=True) if kernels else variances
    return largest(scores, list(inputs.spans()), [[float(inputs.shared["select_topk"])]])[0][0]


def _squares(inputs: Inputs, cut: Cut) -> Array:
    squares = np.zeros(len(inputs.models))
    for block in inputs.blocks():
        for i, delta in enumerate(_selected(inputs, block, cut)):
            squares[i] += inputs.q(np.square(delta, out=delta)).sum(dtype=np.float64)
    return squares


def _weights(inputs: Inputs, squares: Array) -> Array:
    means = squares / max(inputs.size, 1)
    total = means.sum()
    if total == 0 or (inputs.mergekit and total < 1e-6):
        return np.full(len(means), 1 / len(means))
    return means / total
