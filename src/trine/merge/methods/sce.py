"""SCE (Wan et al. 2024, arXiv:2408.07990): select high variance, calculate weights, erase minority signs."""

from __future__ import annotations

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.methods.inputs import Block, Inputs, Kernel, base_only
from trine.merge.methods.select import ALL, NONE, Cut, largest


def sce(inputs: Inputs) -> Kernel:
    """b + sum(w d s) / sum(w s): d the differences, w their mean square over the tensor, s the majority's sign only.

    `select_topk` keeps that share of the elements whose variance over the models is not zero, the largest variances.
    With mergekit's numerics the weights are equal when mean squares sum to less than 1e-6.
    """
    if not inputs.models:
        return base_only
    cut = _cut(inputs)
    weights = [inputs.qs(one) for one in _weights(inputs, cut)]
    smallest = inputs.qs(1e-6) if inputs.mergekit else np.finfo(inputs.work).tiny

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
    return inputs.q(np.var(np.stack(deltas), axis=0))


def _cut(inputs: Inputs) -> Cut:
    share = inputs.shared["select_topk"]
    if share >= 1:
        return ALL
    if share <= 0:
        return NONE

    def scores(start: int, stop: int) -> list[Array]:
        return [_variance(inputs, inputs.deltas(inputs.block(start, stop)))]

    spans = list(inputs.spans())
    varying = sum(int(np.count_nonzero(scores(*span)[0])) for span in spans)
    return largest(scores, spans, [[int(varying * share)]])[0][0]


def _weights(inputs: Inputs, cut: Cut) -> Array:
    squares = np.zeros(len(inputs.models))
    for block in inputs.blocks():
        for i, delta in enumerate(_selected(inputs, block, cut)):
            squares[i] += inputs.q(np.square(delta, out=delta)).sum(dtype=np.float64)
    means = squares / max(inputs.size, 1)
    total = means.sum()
    if total == 0 or (inputs.mergekit and total < 1e-6):
        return np.full(len(means), 1 / len(means))
    return means / total
