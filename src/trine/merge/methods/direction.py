"""multislerp and karcher: means of directions. Every vector they form is a combination of the inputs, so all of the
geometry happens in coefficients, with the inputs' inner products: one pass for these, one to combine.
"""

from __future__ import annotations

import numpy as np

from trine.errors import TrineError
from trine.merge.dtypes import Array
from trine.merge.methods.combine import Vectors, combination, inner_products
from trine.merge.methods.inputs import Inputs, Kernel


def multislerp(inputs: Inputs) -> Kernel:
    """The direction sum_i w_i x_i/|x_i| with the length sum_i w_i |x_i|; of the differences when there is a base.

    (Goddard's description adds a step in the tangent space at that mean, whose weighted sum is zero by construction.)
    """
    if len(inputs.models) == 1:
        return lambda block: block.models[0]
    eps, weights = inputs.shared["eps"], np.array(inputs.weights())
    if inputs.shared["normalize_weights"]:
        weights = weights / weights.sum()
    products = inner_products(inputs, _of(inputs))
    norms = np.sqrt(np.diag(products))
    mean = weights / (norms + eps)
    length = _length(mean, products)
    if length >= eps:
        factors = mean / length * (weights @ norms)
    elif len(weights) == 2 or not (norms > eps).any():
        factors = weights
    else:
        raise TrineError(f"{inputs.name}: the inputs' directions cancel out under these weights; choose other weights")
    return combination(inputs, list(factors), _of(inputs))


def _of(inputs: Inputs) -> Vectors:
    return "models" if inputs.base is None else "differences"


def karcher(inputs: Inputs) -> Kernel:
    """The Riemannian mean of the directions on the sphere, with the mean length (Karcher 1977, fixed point)."""
    if len(inputs.models) == 1:
        return lambda block: block.models[0]
    products = inner_products(inputs, "models")
    factors = karcher_factors(products, inputs.shared["max_iter"], inputs.shared["tol"])
    return combination(inputs, list(factors), "models")


def karcher_factors(products: Array, max_iter: int, tol: float) -> Array:
    """Coefficients [n] of the mean in the inputs, from their inner products [n, n].

    Inputs shorter than `tol` have no direction and count in the length only.
    """
    norms = np.sqrt(np.diag(products))
    valid = norms > tol
    if not valid.any():
        return np.zeros(len(norms))
    units = np.diag(1 / np.where(valid, norms, 1))[valid]
    mean = units.mean(axis=0)
    length = _length(mean, products)
    mean = units[0] if length < tol else mean / length
    for _ in range(max_iter):
        cosines = np.clip(units @ products @ mean, -1, 1)
        angles = np.arccos(cosines)
        far = angles >= tol
        if not far.any():
            break
        pull = angles[far] / np.sin(angles[far]) / len(units)
        tangent = pull @ units[far] - (pull @ cosines[far]) * mean
        length = _length(tangent, products)
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * tangent
        mean = mean / max(_length(mean, products), tol)
    return mean * norms.mean()


def _length(factors: Array, products: Array) -> float:
    return float(np.sqrt(max(factors @ products @ factors, 0.0)))
