"""RAM and RAM+ (Reinforced Agent Merging, arXiv:2601.13572): lone changes whole, shared changes averaged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.methods.inputs import Block, Inputs, Kernel, base_only


def ram(inputs: Inputs) -> Kernel:
    """b + d where one model differs by more than `epsilon`, b + mean of the d that do where several."""
    return _ram(inputs, [1.0] * len(inputs.models), inputs.q)


def ramplus_tl(inputs: Inputs) -> Kernel:
    """RAM with what a model alone changed times 1 + r min(rho, alpha), rho its shared over its lone changes."""
    shared = np.zeros(len(inputs.models))
    alone = np.zeros(len(inputs.models))
    epsilon = inputs.qs(inputs.shared["epsilon"])
    for block in inputs.blocks():
        changed, count = _changed(inputs.deltas(block), epsilon)
        shared += [np.count_nonzero(one & (count > 1)) for one in changed]
        alone += [np.count_nonzero(one & (count == 1)) for one in changed]
    rho = np.clip(shared / np.maximum(alone, inputs.shared["epsilon"]), 0, inputs.shared["alpha"])
    return _ram(inputs, list(1 + inputs.shared["r"] * rho), lambda values: values)


def _ram(inputs: Inputs, boosts: list[float], late: Callable[[Array], Array]) -> Kernel:
    """`late` rounds what follows the boosts, which mergekit holds in fp32."""
    epsilon = inputs.qs(inputs.shared["epsilon"])

    def kernel(block: Block) -> Array:
        assert block.base is not None
        deltas = inputs.deltas(block)
        changed, count = _changed(deltas, epsilon)
        total = np.zeros_like(block.base)
        divisor = np.maximum(count, 1).astype(inputs.work)
        for boost, delta, one in zip(boosts, deltas, changed, strict=True):
            total += late(delta * inputs.work(boost)) * (one & (count == 1))
            total += inputs.q(delta / divisor) * (one & (count > 1))
        return late(block.base + late(total))

    return kernel if inputs.models else base_only


def _changed(deltas: list[Array], epsilon: float) -> tuple[list[Array], Array]:
    """Per model which elements changed, and how many models changed each."""
    changed = [np.abs(one) > epsilon for one in deltas]
    count = np.zeros(len(changed[0]) if changed else 0, np.int32)
    for one in changed:
        count += one
    return changed, count
