"""Which elements of a difference stay: the largest, all but outliers and crumbs, or a random choice.

Each function looks at the inputs and gives `prune(model, difference, start)`: the difference of a block with the
dropped elements 0 and, with `rescale`, the others larger. Random choices scale by 1 / probability, as their papers do;
all else, and everything with mergekit's numerics, scales so that the sum of magnitudes over the tensor is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.methods.inputs import Inputs
from trine.merge.methods.keyed import key_of, random_bits, threshold
from trine.merge.methods.select import ALL, Cut, largest

Prune = Callable[[int, Array, int], Array]


def whole(model: int, delta: Array, start: int) -> Array:
    """Everything stays."""
    return delta


def magnitude(inputs: Inputs) -> Prune:
    """The `density` n largest of each difference, at least one; none when the density is 0."""
    size = inputs.size
    densities = inputs.weights("density")
    ranks = [[size if one >= 1 else 0 if one <= 0 else max(1, int(one * size))] for one in densities]
    cuts = [one[0] for one in _cuts(inputs, ranks)]

    def prune(model: int, delta: Array, start: int) -> Array:
        if cuts[model] is ALL:
            return delta
        return delta * cuts[model].mask(np.abs(delta), start)

    return _keeping_sums(inputs, prune) if inputs.shared["rescale"] else prune


def outliers(inputs: Inputs) -> Prune:
    """`density` n elements that come after the `gamma` n largest; fewer are skipped when too few would be left.

    A density of 1 keeps everything.
    """
    size, ranks = inputs.size, []
    for density, gamma in zip(inputs.weights("density"), inputs.weights("gamma"), strict=True):
        kept = int(density * size)
        skipped = min(int(gamma * size), size - kept)
        ranks.append([0, size] if density >= 1 else [skipped, skipped + kept])
    cuts = _cuts(inputs, ranks)

    def prune(model: int, delta: Array, start: int) -> Array:
        if inputs.each[model]["density"] >= 1:
            return delta
        sizes = np.abs(delta)
        above, kept = (cut.mask(sizes, start) for cut in cuts[model])
        return delta * (kept & ~above)

    return _keeping_sums(inputs, prune) if inputs.shared["rescale"] else prune


def random(inputs: Inputs) -> Prune:
    """Each element with probability `density`."""
    keys = _keys(inputs)
    densities = [float(inputs.qs(one)) for one in inputs.weights("density")]
    scaled = inputs.shared["rescale"] and not inputs.mergekit

    def prune(model: int, delta: Array, start: int) -> Array:
        density = densities[model]
        if inputs.each[model]["density"] >= 1:
            return delta
        kept = random_bits(keys[model], start, len(delta)) < np.uint64(threshold(density))
        factor = inputs.work(1 / density if scaled and density > 0 else 1)
        return delta * np.where(kept, factor, inputs.work(0))

    return _keeping_sums(inputs, prune) if inputs.shared["rescale"] and inputs.mergekit else prune


def by_rank(inputs: Inputs) -> Prune:
    """Each element with a probability from density - epsilon (smallest of its row) to density + epsilon (largest)."""
    keys = _keys(inputs)
    scaled = inputs.shared["rescale"] and not inputs.mergekit

    def prune(model: int, delta: Array, start: int) -> Array:
        density, epsilon = inputs.each[model]["density"], inputs.each[model]["epsilon"]
        if density >= 1:
            return delta
        if density <= 0:
            return delta * 0
        chance = _chances(inputs, delta, density, epsilon)
        kept = random_bits(keys[model], start, len(delta)).astype(inputs.work) * 2.0**-32 < chance
        return np.where(kept, delta / chance if scaled else delta, inputs.work(0))

    return _keeping_sums(inputs, prune) if inputs.shared["rescale"] and inputs.mergekit else prune


def _chances(inputs: Inputs, delta: Array, density: float, epsilon: float) -> Array:
    rows = np.abs(delta).reshape(-1, inputs.columns)
    order = np.argsort(rows, axis=1, kind="stable")
    ranks = np.empty_like(rows)
    np.put_along_axis(ranks, order, np.arange(rows.shape[1], dtype=inputs.work)[None, :], axis=1)
    if rows.shape[1] == 1:
        return np.full(len(delta), density, inputs.work)
    step = 2 * epsilon / (rows.shape[1] - 1)
    return inputs.q(ranks * inputs.work(step) + inputs.work(density - epsilon)).reshape(-1)


def _keys(inputs: Inputs) -> list[int]:
    return [key_of(inputs.seed, inputs.name, label) for label in inputs.labels]


def _cuts(inputs: Inputs, ranks: list[list[int]]) -> list[list[Cut]]:
    def sizes(start: int, stop: int) -> list[Array]:
        return [np.abs(one, out=one) for one in inputs.deltas(inputs.block(start, stop))]

    return largest(sizes, list(inputs.spans()), ranks)


def _keeping_sums(inputs: Inputs, prune: Prune) -> Prune:
    """`prune` with what stays scaled to the sum of magnitudes before it; sums below 1e-7 are left alone."""
    before, after = np.zeros((2, len(inputs.models)))
    for block in inputs.blocks():
        for i, delta in enumerate(inputs.deltas(block)):
            before[i] += np.abs(delta).sum(dtype=np.float64)
            after[i] += np.abs(prune(i, delta, block.start)).sum(dtype=np.float64)
    kept = (before >= 1e-7) & (after >= 1e-7)
    before, after = (inputs.q(one.astype(inputs.work)) for one in (before, after))
    factors = inputs.q(np.where(kept, before / np.where(kept, after, 1), 1).astype(inputs.work))

    def scaled(model: int, delta: Array, start: int) -> Array:
        return inputs.q(prune(model, delta, start) * factors[model])

    return scaled
