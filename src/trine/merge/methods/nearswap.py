"""nearswap: the other model where it is near the base, less of it farther away (alchemonaut 2024)."""

from __future__ import annotations

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.methods.inputs import Block, Inputs, Kernel


def nearswap(inputs: Inputs) -> Kernel:
    """w x + (1 - w) b with w = t / |b - x| between 0 and 1; differences below 1e-6 count as 1e-6."""
    q, t, smallest = inputs.q, inputs.work(inputs.shared["t"]), inputs.qs(1e-6)

    def kernel(block: Block) -> Array:
        assert block.base is not None
        distance = np.maximum(np.abs(q(block.base - block.models[0])), smallest)
        share = q(q(1 / distance) * t)
        np.clip(share, 0, 1, out=share)
        return q(q(share * block.models[0]) + q(q(1 - share) * block.base))

    return kernel
