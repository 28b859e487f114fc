"""slerp and nuslerp: along the arc between two tensors.

Both results are a combination of the two inputs whose coefficients follow from three inner products, so one pass
takes these and a second combines. Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
"""

from __future__ import annotations

import numpy as np

from trine.merge.dtypes import Array
from trine.merge.methods.combine import combination, inner_products
from trine.merge.methods.inputs import Block, Inputs, Kernel


def slerp(inputs: Inputs) -> Kernel:
    """sin((1-t)a)/sin(a) base + sin(ta)/sin(a) x, a the angle between them; linear when |cos a| > 0.9995."""
    assert inputs.base is not None
    t = inputs.shared["t"]
    products = inner_products(inputs, "all")
    norms = np.sqrt(np.diag(products))
    norms[norms <= 1e-8] = 1.0
    cosine = float(np.clip(products[0, 1] / norms[0] / norms[1], -1, 1))
    weights = (1 - t, t) if abs(cosine) > 0.9995 else _arc(np.arccos(cosine), t)
    return combination(inputs, weights, "all")


def _arc(angle: float, t: float) -> tuple[float, float]:
    return float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle))


def nuslerp(inputs: Inputs) -> Kernel:
    """slerp between two models with t = w1 / (w0 + w1), of the differences from the base when there is one.

    The angle is that of the whole tensor (`nuslerp_flatten`), of each row, or with `nuslerp_row_wise` of each column.
    """
    first, second = inputs.weights()
    total = first + second
    t = 0.5 if abs(total) < 1e-6 else second / total
    if inputs.shared["nuslerp_flatten"] or len(inputs.shape) < 2:
        of = "models" if inputs.base is None else "differences"
        products = inner_products(inputs, of)
        coefficients = _coefficients(products[0, 0], products[1, 1], products[0, 1], t)
        if not inputs.mergekit:
            return combination(inputs, [float(one) for one in coefficients], of)
    elif inputs.shared["nuslerp_row_wise"]:
        left, right, dot = _column_products(inputs)
        coefficients = _coefficients(left, right, dot, t)
    else:
        coefficients = None

    def kernel(block: Block) -> Array:
        base = None if block.base is None else block.base.copy()
        pair = [one.reshape(-1, inputs.columns) for one in _vectors(inputs, block)]
        left, right = coefficients or _row_coefficients(pair[0], pair[1], t)
        if coefficients and np.size(left) > 1:  # a coefficient per column of all dimensions but the first
            place = (block.start + np.arange(block.size)) % np.size(left)
            left, right = (one[place].reshape(pair[0].shape) for one in (left, right))
        merged = inputs.q((left * pair[0] + right * pair[1]).astype(inputs.work, copy=False).reshape(-1))
        return merged if base is None else inputs.q(merged + base)

    return kernel


def _vectors(inputs: Inputs, block: Block) -> list[Array]:
    return block.models if block.base is None else inputs.deltas(block)


def _row_coefficients(left: Array, right: Array, t: float) -> tuple[Array, Array]:
    products = [np.einsum("ij,ij->i", a, b, dtype=np.float64) for a, b in ((left, left), (right, right), (left, right))]
    left_square, right_square, dot = (one[:, None] for one in products)
    return _coefficients(left_square, right_square, dot, t)


def _column_products(inputs: Inputs) -> Array:
    """Squared norms of the columns of both, and their inner products: [3, columns]. Dimension 0 is summed over."""
    width = inputs.size // inputs.shape[0]
    total = np.zeros((3, width))
    for block in inputs.blocks():
        place = (block.start + np.arange(block.size)) % width
        left, right = _vectors(inputs, block)
        for row, product in enumerate((left * left, right * right, left * right)):
            total[row] += np.bincount(place, product, width)
    return total


def _coefficients(left: Array, right: Array, dot: Array, t: float) -> tuple[Array, Array]:
    """Factors of both vectors from squared norms and inner product."""
    norms = [np.maximum(np.sqrt(one), 1e-7) for one in (left, right)]
    cosine = np.clip(dot / norms[0] / norms[1], -1, 1)
    collinear = 1 - cosine**2 <= 1e-16
    angle = np.arccos(np.where(collinear, 0, cosine))
    sine = np.sin(angle)
    return (
        np.where(collinear, 1 - t, np.sin((1 - t) * angle) / sine),
        np.where(collinear, t, np.sin(t * angle) / sine),
    )
