"""Which points a sweep tries: all of a grid, or what CMA-ES asks for.

A search is a generator: it yields lists of points and is sent the value of each, larger being better. It is a pure
function of its config and of those values, so a sweep that was killed is taken up by sending what is known already.
CMA-ES: Hansen 2016, arXiv:1604.00772, by the `cma` package, in units of each range, with bounds.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from itertools import product
from typing import Any

import numpy as np

from trine.merge.sweep_config import SweepConfig

Point = list[float]
Search = Generator[list[Point], list[float], None]
WORST = 1e300
"""The loss of a merge whose score is no number; CMA-ES ranks, so its size does not matter."""


def search(config: SweepConfig) -> Search:
    """The search that a config names."""
    return _grid(config) if config.search == "grid" else _cma(config)


def _grid(config: SweepConfig) -> Search:
    yield [list(point) for point in product(*(one.values or () for one in config.vary))]


def _cma(config: SweepConfig) -> Search:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says at import that plots are not available
        import cma

    low = np.array([one.low for one in config.vary])
    span = np.array([one.high for one in config.vary]) - low
    start = [0.5 if one.start is None else (one.start - low[i]) / span[i] for i, one in enumerate(config.vary)]
    rng = np.random.default_rng([config.seed, len(config.vary)])
    options: dict[str, Any] = {
        "bounds": [0, 1],
        "randn": lambda *shape: rng.standard_normal(shape[0] if isinstance(shape[0], tuple) else shape),
        "seed": np.nan,  # leaves numpy's global generator alone
        "verbose": -9,
        "maxiter": 10**9,
    }
    if config.population:
        options["popsize"] = config.population
    strategy = cma.CMAEvolutionStrategy(start, config.sigma, options)
    left = config.evaluations
    while left > 0:
        asked = strategy.ask()
        tried = asked[:left]
        values = yield [(low + span * np.clip(one, 0, 1)).tolist() for one in tried]
        left -= len(tried)
        if left > 0:
            strategy.tell(asked, [-one if np.isfinite(one) else WORST for one in values])
