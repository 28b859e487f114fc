"""Which elements of a difference stay: the largest, all but outliers and crumbs, or a random choice.

Each function looks at the inputs and gives a rule per model, which `pruned` carries out, as native/mix.h does: the
dropped elements 0 and, with `rescale`, the others larger. Random choices scale by 1 / probability, as their papers do;
all else, and everything with mergekit's numerics, scales so that the sum of magnitudes over the tensor is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.fused import PRUNING, fused
from trine.merge.methods.inputs import Inputs
from trine.merge.methods.keyed import key_of, random_bits, threshold
from trine.merge.methods.select import ALL, Cut, Rank, Scores, largest


@dataclass(frozen=True)
class Rule:
    """What stays of one model's difference."""

    kind: Literal["all", "above", "between", "random", "ranked"]
    low: Cut = ALL
    """above, between: what is selected."""
    high: Cut = ALL
    """between: what of it is skipped."""
    key: int = 0
    """random, ranked: of the random bits."""
    density: float = 1.0
    """random: the probability to stay."""
    chance: tuple[float, float] = (0.0, 0.0)
    """ranked: the probability of a row's smallest element, and how much more the next one's is."""
    scaled: bool = False
    """random, ranked: what stays is divided by its probability."""
    factor: Any = None
    """What stays is multiplied by this, where it is given."""


Rules = list[Rule]


def whole(inputs: Inputs) -> Rules:
    """Everything stays."""
    return [Rule("all")] * len(inputs.models)


def magnitude(inputs: Inputs) -> Rules:
    """The `density` n largest of each difference, at least one; none when the density is 0."""
    size = inputs.size
    densities = inputs.weights("density")
    ranks = [[size if one >= 1 else 0 if one <= 0 else max(1, int(one * size))] for one in densities]
    rules = [Rule("all") if cut is ALL else Rule("above", cut) for (cut,) in _cuts(inputs, ranks)]
    return _keeping_sums(inputs, rules) if inputs.shared["rescale"] else rules


def outliers(inputs: Inputs) -> Rules:
    """`density` n elements that come after the `gamma` n largest; fewer are skipped when too few would be left.

    A density of 1 keeps everything.
    """
    size, ranks = inputs.size, []
    densities = inputs.weights("density")
    for density, gamma in zip(densities, inputs.weights("gamma"), strict=True):
        kept = int(density * size)
        skipped = min(int(gamma * size), size - kept)
        ranks.append([0, size] if density >= 1 else [skipped, skipped + kept])
    cuts = zip(densities, _cuts(inputs, ranks), strict=True)
    rules = [Rule("all") if density >= 1 else Rule("between", low, high) for density, (high, low) in cuts]
    return _keeping_sums(inputs, rules) if inputs.shared["rescale"] else rules


def random(inputs: Inputs) -> Rules:
    """Each element with probability `density`."""
    scaled = inputs.shared["rescale"] and not inputs.mergekit
    rules = []
    for given, key in zip(inputs.weights("density"), _keys(inputs), strict=True):
        density = float(inputs.qs(given))
        rules.append(Rule("all") if given >= 1 else Rule("random", key=key, density=density, scaled=scaled))
    return _keeping_sums(inputs, rules) if inputs.shared["rescale"] and inputs.mergekit else rules


def by_rank(inputs: Inputs) -> Rules:
    """Each element with a probability from density - epsilon (smallest of its row) to density + epsilon (largest)."""
    scaled, columns = inputs.shared["rescale"] and not inputs.mergekit, inputs.columns
    rules = []
    for each, key in zip(inputs.each, _keys(inputs), strict=True):
        density, epsilon = each["density"], each["epsilon"]
        chance = (density - epsilon, 2 * epsilon / (columns - 1)) if columns > 1 else (density, 0.0)
        if density >= 1:
            rules.append(Rule("all"))
        elif density <= 0:
            rules.append(Rule("random", key=key, density=0.0))
        else:
            rules.append(Rule("ranked", key=key, chance=chance, scaled=scaled))
    return _keeping_sums(inputs, rules) if inputs.shared["rescale"] and inputs.mergekit else rules


def pruned(inputs: Inputs, rule: Rule, delta: Array, start: int) -> Array:
    """What stays of elements start, start + 1, ... of a difference."""
    kept = _kept(inputs, rule, delta, start)
    return kept if rule.factor is None else inputs.q(kept * rule.factor)


def _kept(inputs: Inputs, rule: Rule, delta: Array, start: int) -> Array:
    match rule.kind:
        case "all":
            return delta
        case "above":
            return delta * rule.low.mask(np.abs(delta), start)
        case "between":
            sizes = np.abs(delta)
            return delta * (rule.low.mask(sizes, start) & ~rule.high.mask(sizes, start))
    bits = random_bits(rule.key, start, len(delta))
    if rule.kind == "random":
        factor = inputs.work(1 / rule.density if rule.scaled and rule.density > 0 else 1)
        return delta * np.where(bits < np.uint64(threshold(rule.density)), factor, inputs.work(0))
    chance = _chances(inputs, rule, delta)
    kept = bits.astype(inputs.work) * inputs.work(2.0**-32) < chance
    return np.where(kept, delta / chance if rule.scaled else delta, inputs.work(0))


def _chances(inputs: Inputs, rule: Rule, delta: Array) -> Array:
    rows = np.abs(delta).reshape(-1, inputs.columns)
    order = np.argsort(rows, axis=1, kind="stable")
    ranks = np.empty_like(rows)
    np.put_along_axis(ranks, order, np.arange(rows.shape[1], dtype=inputs.work)[None, :], axis=1)
    low, step = rule.chance
    return inputs.q(ranks * inputs.work(step) + inputs.work(low)).reshape(-1)


def records(rules: Rules) -> Array:
    """The rules as mix.h reads them; None of them has a factor."""
    kinds = ("all", "above", "between", "random", "ranked")
    found = np.zeros(len(rules), PRUNING)
    for record, rule in zip(found, rules, strict=True):
        record["kind"], record["key"], record["scaled"] = kinds.index(rule.kind), rule.key, rule.scaled
        (record["low"], record["low_last"]), (record["high"], record["high_last"]) = rule.low, rule.high
        record["below"] = threshold(rule.density)
        record["factor"] = 1 / rule.density if rule.scaled and rule.density > 0 else 1
        if rule.kind == "ranked":
            record["low"], record["high"] = rule.chance
    return found


def _keys(inputs: Inputs) -> list[int]:
    return [key_of(inputs.seed, inputs.name, label) for label in inputs.labels]


def _cuts(inputs: Inputs, ranks: Sequence[Sequence[Rank]]) -> list[list[Cut]]:
    return largest(_sizes(inputs), list(inputs.spans()), ranks)


def _sizes(inputs: Inputs) -> Scores:
    """|difference| of each model in elements [start, stop)."""
    if kernels := fused(inputs, inputs.models, inputs.base):
        return kernels.scores(variance=False)
    return lambda start, stop: [np.abs(one, out=one) for one in inputs.deltas(inputs.block(start, stop))]


def _keeping_sums(inputs: Inputs, rules: Rules) -> Rules:
    """The rules with what stays scaled to the sum of magnitudes before it; sums below 1e-7 are left alone."""
    before, after = np.zeros((2, len(inputs.models)))
    for block in inputs.blocks():
        for i, delta in enumerate(inputs.deltas(block)):
            before[i] += np.abs(delta).sum(dtype=np.float64)
            after[i] += np.abs(pruned(inputs, rules[i], delta, block.start)).sum(dtype=np.float64)
    kept = (before >= 1e-7) & (after >= 1e-7)
    before, after = (inputs.q(one.astype(inputs.work)) for one in (before, after))
    factors = inputs.q(np.where(kept, before / np.where(kept, after, 1), 1).astype(inputs.work))
    return [replace(rule, factor=factor) for rule, factor in zip(rules, factors, strict=True)]
