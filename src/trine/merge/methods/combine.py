"""Linear combinations and inner products of a tensor's inputs: one pass each, by kernels where they apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from trine.merge.arithmetic import gram, weighted_sum
from trine.merge.dtypes import Array
from trine.merge.fused import Fused, fused
from trine.merge.methods.inputs import Block, Inputs, Kernel

Vectors = Literal["models", "all", "differences"]
"""What is combined: the models, the base and the models, or the models' differences from the base."""


def inner_products(inputs: Inputs, of: Vectors) -> Array:
    """All inner products [n, n] of the n vectors over the whole tensor, in fp64."""
    if kernels := _kernels(inputs, of):
        return kernels.products()
    count = len(inputs.models) + (of == "all")
    return gram((_vectors(inputs, block, of) for block in inputs.blocks()), count)


def combination(inputs: Inputs, factors: Sequence[float], of: Vectors, divisor: float = 1, scale: float = 1) -> Kernel:
    """sum(factors v) / divisor * scale; of differences, plus the base. Steps of the sum are fused multiply-adds."""
    if kernels := _kernels(inputs, of):
        return kernels.combine(factors, divisor, scale)

    def kernel(block: Block) -> Array:
        base = block.base
        merged = weighted_sum(factors, _vectors(inputs, block, of))
        if divisor != 1:
            np.divide(merged, inputs.work(divisor), out=merged)
        if scale != 1:
            np.multiply(merged, inputs.work(scale), out=merged)
        return merged if of != "differences" or base is None else np.add(merged, base, out=merged)

    return kernel


def _kernels(inputs: Inputs, of: Vectors) -> Fused | None:
    if of == "all":
        assert inputs.base is not None
        return fused(inputs, [inputs.base, *inputs.models], None)
    return fused(inputs, inputs.models, inputs.base if of == "differences" else None)


def _vectors(inputs: Inputs, block: Block, of: Vectors) -> list[Array]:
    match of:
        case "models":
            return block.models
        case "differences":
            return inputs.deltas(block)
    assert block.base is not None
    return [block.base, *block.models]
