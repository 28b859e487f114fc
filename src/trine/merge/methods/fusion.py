"""arcee_fusion: only the most important differences, by size and by how far each row's softmax moved."""

from __future__ import annotations

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.methods.inputs import Block, Inputs, Kernel
from trine.merge.methods.select import largest

_EPS = 1e-8


def arcee_fusion(inputs: Inputs) -> Kernel:
    """b + d where |d| KL(softmax(x) || softmax(b)), the divergence per row, reaches median + 1.5 IQR of the tensor.

    The quantiles are exact for every size (mergekit samples a million elements of larger tensors).
    """
    size = inputs.size
    places = [int(share * (size - 1)) for share in (0.25, 0.5, 0.75)]

    def scores(start: int, stop: int) -> list[Array]:
        return [_importance(inputs, inputs.block(start, stop))]

    def importance_of(start: int, stop: int) -> list[Array]:
        first = start // inputs.columns * inputs.columns
        last = min(-(-stop // inputs.columns) * inputs.columns, size)
        return [scores(first, last)[0][start - first : stop - first]]

    if not size:
        return lambda block: block.models[0]
    cuts = largest(importance_of, list(inputs.spans()), [[size - place for place in places]])[0]
    lowest = 0.0 if places[0] else min(float(scores(*span)[0].min()) for span in inputs.spans())
    first, median, third = (lowest if cut.value == -np.inf else cut.value for cut in cuts)
    bound = inputs.work(median + 1.5 * (third - first))

    def kernel(block: Block) -> Array:
        keep = _importance(inputs, Block(block.start, block.base, [one.copy() for one in block.models])) >= bound
        (delta,) = inputs.deltas(block)
        assert block.base is not None
        return np.add(delta * keep, block.base, out=delta)

    return kernel


def _importance(inputs: Inputs, block: Block) -> Array:
    assert block.base is not None
    rows = [_softmax(inputs, one) for one in (block.models[0], block.base)]
    ratio = inputs.q(np.log(inputs.q(rows[0] / rows[1])))
    divergence = inputs.q(inputs.q(rows[0] * ratio).sum(axis=1, keepdims=True))
    (delta,) = inputs.deltas(block)
    return inputs.q(np.abs(delta).reshape(-1, inputs.columns) * np.maximum(divergence, 0)).reshape(-1)


def _softmax(inputs: Inputs, values: Array) -> Array:
    """Softmax of each row, plus 1e-8."""
    rows = values.reshape(-1, inputs.columns)
    shifted = np.exp(rows - rows.max(axis=1, keepdims=True))
    return inputs.q(inputs.q(shifted / shifted.sum(axis=1, keepdims=True)) + inputs.work(_EPS))
