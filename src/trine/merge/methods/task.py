"""Task arithmetic and its family: differences from the base, thinned out, made to agree in sign, added up.

task_arithmetic: Ilharco et al. 2022, arXiv:2212.04089. ties: Yadav et al. 2023, arXiv:2306.01708. dare: Yu et al.
2023, arXiv:2311.03099. della: Deep et al. 2024, arXiv:2406.11617. breadcrumbs: Davari & Belilovsky 2023,
arXiv:2312.06795.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trine.merge.arithmetic import agree
from trine.merge.dtypes import Array
from trine.merge.fused import fused
from trine.merge.methods.inputs import Block, Inputs, Kernel, base_only
from trine.merge.methods.prune import Rules, by_rank, magnitude, outliers, pruned, random, records, whole


def task_arithmetic(inputs: Inputs) -> Kernel:
    """b + lambda sum(w d), divided by sum(w) with `normalize`."""
    return _mix(inputs, whole(inputs), consensus=False)


def ties(inputs: Inputs) -> Kernel:
    """The largest of each difference, then only those of the sign that the weighted sum has: sum(w d s) / sum(w s)."""
    return _thinned(inputs, "ties")


def dare_linear(inputs: Inputs) -> Kernel:
    """Each element of a difference dropped at random, the others scaled up."""
    return _thinned(inputs, "dare_linear")


def dare_ties(inputs: Inputs) -> Kernel:
    """dare_linear with the consensus of ties."""
    return _thinned(inputs, "dare_ties")


def della_linear(inputs: Inputs) -> Kernel:
    """Elements of a difference dropped at random, the smaller ones of a row more often."""
    return _thinned(inputs, "della_linear")


def della(inputs: Inputs) -> Kernel:
    """della_linear with the consensus of ties."""
    return _thinned(inputs, "della")


def breadcrumbs(inputs: Inputs) -> Kernel:
    """Differences without their largest (`gamma`) and smallest elements."""
    return _thinned(inputs, "breadcrumbs")


def breadcrumbs_ties(inputs: Inputs) -> Kernel:
    """breadcrumbs with the consensus of ties."""
    return _thinned(inputs, "breadcrumbs_ties")


THINNED: dict[str, tuple[Callable[[Inputs], Rules], bool]] = {
    "ties": (magnitude, True),
    "dare_linear": (random, False),
    "dare_ties": (random, True),
    "della_linear": (by_rank, False),
    "della": (by_rank, True),
    "breadcrumbs": (outliers, False),
    "breadcrumbs_ties": (outliers, True),
}
"""Methods that drop elements of a difference: which, and whether those of the minority's sign are dropped too."""


def _thinned(inputs: Inputs, method: str) -> Kernel:
    rules, consensus = THINNED[method]
    return _mix(inputs, rules(inputs), consensus)


def _mix(inputs: Inputs, rules: Rules, consensus: bool) -> Kernel:
    """b + lambda sum(w d s) / sum(w s): d pruned, s 1 or whether d has the sign of the weighted sum."""
    weights = [inputs.qs(one) for one in inputs.weights()]
    scale, normalize = inputs.shared["lambda"], inputs.shared["normalize"]
    q = inputs.q
    if all(rule.factor is None for rule in rules) and (kernels := fused(inputs, inputs.models, inputs.base)):
        divisor = 1 if not normalize else 0 if consensus else float(_divisor(inputs, weights))
        return kernels.mix(weights, records(rules), consensus, divisor, scale)

    def kernel(block: Block) -> Array:
        assert block.base is not None
        deltas = inputs.deltas(block)
        for i, weight in enumerate(weights):
            deltas[i] = pruned(inputs, rules[i], deltas[i], block.start)
            np.multiply(deltas[i], weight, out=deltas[i])
            deltas[i] = q(deltas[i])
        mixed, divisor = _agreed(inputs, weights, deltas) if consensus else _summed(inputs, weights, deltas)
        if normalize:
            mixed = q(np.divide(mixed, divisor, out=mixed))
        if scale != 1:
            mixed = q(np.multiply(mixed, inputs.work(scale), out=mixed))
        return q(np.add(mixed, block.base, out=mixed))

    return kernel if inputs.models else base_only


def _summed(inputs: Inputs, weights: list[float], deltas: list[Array]) -> tuple[Array, Array]:
    total = deltas[0]
    for delta in deltas[1:]:
        np.add(total, delta, out=total)
    return inputs.q(total), _divisor(inputs, weights)


def _divisor(inputs: Inputs, weights: list[float]) -> Any:
    divisor = inputs.qs(float(np.sum(np.array(weights, inputs.work))))
    return divisor if abs(divisor) >= 1e-8 else inputs.work(1)


def _agreed(inputs: Inputs, weights: list[float], deltas: list[Array]) -> tuple[Array, Array]:
    """Sums of the differences, and of the weights, that have the elected sign; + where the sum is 0."""
    above, below = agree(weights, deltas)
    return inputs.q(above), inputs.q(below)
