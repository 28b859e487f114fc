"""Who goes with whom so that the sum of gains is largest: the linear assignment problem, exactly.

Shortest augmenting paths with dual prices (Jonker & Volgenant 1987), a row at a time; the search of each row is a loop
of numpy calls over the columns. Cost: n^3 at worst, a second for the 256 experts of a layer.
"""

from __future__ import annotations

import numpy as np

from trine.merge.dtypes import Array


def assign(gains: Array) -> list[int]:
    """For each row of `gains` [n, n], its column, each column once, with the largest sum of gains.

    Raises ValueError when `gains` is not square or holds a value that is not finite.
    """
    costs = -np.asarray(gains, np.float64)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or not np.isfinite(costs).all():
        raise ValueError(f"expected a square matrix of finite numbers, got shape {costs.shape}")
    count = len(costs)
    row_of = np.full(count, -1)
    row_price, column_price = np.zeros(count), np.zeros(count)
    for row in range(count):
        column, before = _search(costs, row, row_of, row_price, column_price)
        while column >= 0:
            row_of[column] = row if before[column] < 0 else row_of[before[column]]
            column = before[column]
    chosen = np.empty(count, np.int64)
    chosen[row_of] = np.arange(count)
    return chosen.tolist()


def _search(costs: Array, row: int, row_of: Array, row_price: Array, column_price: Array) -> tuple[int, Array]:
    """The cheapest path from `row` to a free column: that column, and the column before each on its path.

    Prices are raised so that every assigned pair stays the cheapest of its row (reduced costs >= 0, 0 on the pairs).
    """
    count = len(costs)
    distance, before = np.full(count, np.inf), np.full(count, -1)
    done = np.zeros(count, bool)
    reached, here, last = 0.0, row, -1
    visited = [(row, 0.0)]
    while True:
        through = reached + costs[here] - row_price[here] - column_price
        nearer = ~done & (through < distance)
        distance[nearer], before[nearer] = through[nearer], last
        column = int(np.argmin(np.where(done, np.inf, distance)))
        reached, last = float(distance[column]), column
        if row_of[column] < 0:
            break
        done[column] = True
        here = int(row_of[column])
        visited.append((here, reached))
    for one, at in visited:
        row_price[one] += reached - at
    column_price[done] -= reached - distance[done]
    return column, before
