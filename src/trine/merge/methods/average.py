"""linear (model soups, Wortsman et al. 2022, arXiv:2203.05482) and passthrough."""

from __future__ import annotations

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.methods.combine import combination
from trine.merge.methods.inputs import Block, Inputs, Kernel
from trine.merge.methods.keyed import key_of, normal


def linear(inputs: Inputs) -> Kernel:
    """sum_i w_i x_i, divided by sum_i w_i with `normalize`."""
    weights = inputs.weights()
    total = float(np.sum(np.array(weights, inputs.work)))
    return combination(inputs, weights, "models", total if inputs.shared["normalize"] else 1)


def passthrough(inputs: Inputs) -> Kernel:
    """The one input, plus normal `noise` of that standard deviation and times `scale` where there are any."""
    scale, noise = inputs.each[0].get("scale"), inputs.each[0].get("noise")
    if not noise and not inputs.mergekit:
        return combination(inputs, [1.0 if scale is None else scale], "models")
    key = key_of(inputs.seed, inputs.name, inputs.labels[0]) if noise else 0

    def kernel(block: Block) -> Array:
        values = block.models[0]
        if noise:
            values = values + inputs.work(noise) * normal(key, block.start, block.size).astype(inputs.work)
        return values if scale is None else inputs.q(values * inputs.work(scale))

    return kernel
