"""linear (model soups, Wortsman et al. 2022, arXiv:2203.05482) and passthrough."""

from __future__ import annotations

import numpy as np

from trine.merge.arithmetic import weighted_sum
from trine.merge.dtypes import Array
from trine.merge.methods.inputs import Block, Inputs, Kernel


def linear(inputs: Inputs) -> Kernel:
    """sum_i w_i x_i, divided by sum_i w_i with `normalize`."""
    weights = inputs.weights()
    total = np.sum(np.array(weights, inputs.work)) if inputs.shared["normalize"] else None

    def kernel(block: Block) -> Array:
        merged = weighted_sum(weights, block.models)
        if total is not None:
            merged /= total
        return merged

    return kernel


def passthrough(inputs: Inputs) -> Kernel:
    """The one input, times `scale` where there is one."""
    scale = inputs.each[0].get("scale")
    if scale is None:
        return lambda block: block.models[0]
    factor = inputs.work(scale)

    def kernel(block: Block) -> Array:
        return inputs.q(block.models[0] * factor)

    return kernel
