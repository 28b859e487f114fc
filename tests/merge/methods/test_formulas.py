"""Every method against a formula in fp64, written apart from the code: whole tensors, full sorts, no blocks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from tests.merge.tensors import fine_tunes, ours
from trine.merge.catalog import SPECS
from trine.merge.dtypes import Array
from trine.merge.methods import inputs
from trine.merge.methods.table import METHODS

SHAPE = (40, 72)


def wide(arrays: list[Array]) -> Any:
    return np.stack(arrays).astype(np.float64)


def arc(t: float, a: Array, b: Array) -> Any:
    angle = np.arccos(np.clip((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def largest(values: Array, count: int) -> Any:
    """Mask of the `count` largest magnitudes; the lower index first among equals."""
    order = np.lexsort((np.arange(values.size), -np.abs(values).reshape(-1)))
    mask = np.zeros(values.size, bool)
    mask[order[:count]] = True
    return mask.reshape(values.shape)


def consensus(base: Array, deltas: Array, weights: list[float], normalize: bool, scale: float = 1.0) -> Any:
    w = np.array(weights)[:, None, None]
    elected = np.where((w * deltas).sum(axis=0) >= 0, 1, -1)
    agree = np.sign(w * deltas) == elected
    total, divisor = (w * deltas * agree).sum(axis=0), (w * agree).sum(axis=0)
    return base + scale * (total / np.where(divisor == 0, 1, divisor) if normalize else total)


def f_linear(base: Array, x: Array) -> Any:
    return (0.5 * x[0] + 0.3 * x[1] + 0.4 * x[2]) / 1.2


def f_slerp(base: Array, x: Array) -> Any:
    return arc(0.3, base, x[0])


def f_nuslerp(base: Array, x: Array) -> Any:
    return base + arc(0.4, x[0] - base, x[1] - base)


def f_nuslerp_rows(base: Array, x: Array) -> Any:
    return base + np.stack([arc(0.4, a, b) for a, b in zip(x[0] - base, x[1] - base, strict=True)])


def f_nuslerp_columns(base: Array, x: Array) -> Any:
    return np.stack([arc(0.4, a, b) for a, b in zip(x[0].T, x[1].T, strict=True)]).T


def f_multislerp(base: Array, x: Array) -> Any:
    d, w = x - base, np.array([0.5, 0.3, 0.2])
    units = [one / np.linalg.norm(one) for one in d]
    mean = sum(a * b for a, b in zip(w, units, strict=True))
    mean = mean / np.linalg.norm(mean)
    tangent = sum(a * (u - (u * mean).sum() * mean) for a, u in zip(w, units, strict=True))
    size = np.linalg.norm(tangent)
    point = mean * np.cos(size) + tangent * np.sinc(size / np.pi)
    return base + point * sum(a * np.linalg.norm(one) for a, one in zip(w, d, strict=True))


def f_karcher(base: Array, x: Array) -> Any:
    units = [one / np.linalg.norm(one) for one in x]
    mean = sum(units) / np.linalg.norm(sum(units))
    for _ in range(50):
        angles = [np.arccos(np.clip((mean * u).sum(), -1, 1)) for u in units]
        logs = [a / np.sin(a) * (u - np.cos(a) * mean) for a, u in zip(angles, units, strict=True)]
        step = sum(logs) / len(logs)
        size = np.linalg.norm(step)
        if size < 1e-12:
            break
        mean = np.cos(size) * mean + np.sin(size) / size * step
    return mean * np.mean([np.linalg.norm(one) for one in x])


def f_task(base: Array, x: Array) -> Any:
    return base + 0.7 * (0.5 * (x[0] - base) - 0.2 * (x[1] - base) + 0.4 * (x[2] - base)) / 0.7


def f_ties(base: Array, x: Array) -> Any:
    d = np.stack([one * largest(one, int(k * one.size)) for one, k in zip(x - base, (0.5, 0.2, 0.9), strict=True)])
    return consensus(base, d, [0.5, 0.3, 0.4], normalize=True, scale=1.3)


def f_ties_rescaled(base: Array, x: Array) -> Any:
    kept = [one * largest(one, int(0.5 * one.size)) for one in x - base]
    d = np.stack([k * np.abs(one).sum() / np.abs(k).sum() for k, one in zip(kept, x - base, strict=True)])
    return consensus(base, d, [0.5, 0.3, 0.4], normalize=False)


def crumbs(delta: Array, density: float, gamma: float) -> Any:
    skipped, kept = int(gamma * delta.size), int(density * delta.size)
    skipped = min(skipped, delta.size - kept)
    return delta * (largest(delta, skipped + kept) & ~largest(delta, skipped))


def f_breadcrumbs(base: Array, x: Array) -> Any:
    return base + sum(w * crumbs(one - base, 0.6, 0.1) for w, one in zip((0.5, 0.3, 0.4), x, strict=True))


def f_breadcrumbs_ties(base: Array, x: Array) -> Any:
    d = np.stack([crumbs(one - base, 0.8, 0.5) for one in x])
    return consensus(base, d, [0.5, 0.3, 0.4], normalize=False)


def f_stock(base: Array, x: Array) -> Any:
    d = (x - base).reshape(3, -1)
    cosines = [d[i] @ d[j] / np.linalg.norm(d[i]) / np.linalg.norm(d[j]) for i, j in combinations(range(3), 2)]
    c = np.mean(cosines)
    t = 3 * c / (1 + 2 * c)
    return t * x.mean(axis=0) + (1 - t) * base


def f_stock_rows(base: Array, x: Array) -> Any:
    return np.concatenate([f_stock(base[i : i + 1], x[:, i : i + 1]) for i in range(len(base))])


def f_nearswap(base: Array, x: Array) -> Any:
    w = np.clip(0.004 / np.maximum(np.abs(base - x[0]), 1e-6), 0, 1)
    return w * x[0] + (1 - w) * base


def f_sce(base: Array, x: Array) -> Any:
    d = x - base
    variance = d.var(axis=0)
    d = d * largest(variance, int(0.4 * np.count_nonzero(variance)))
    w = (d**2).mean(axis=(1, 2))
    w = (w / w.sum())[:, None, None]
    agree = np.sign(d) == np.where(d.sum(axis=0) >= 0, 1, -1)
    divisor = (w * agree).sum(axis=0)
    return base + (w * d * agree).sum(axis=0) / np.where(divisor == 0, 1, divisor)


def f_fusion(base: Array, x: Array) -> Any:
    p, q = (np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) + 1e-8 for one in (x[0], base))
    importance = np.abs(x[0] - base) * (p * np.log(p / q)).sum(axis=1, keepdims=True)
    ranked = np.sort(importance.reshape(-1))
    a, m, b = (ranked[int(s * (len(ranked) - 1))] for s in (0.25, 0.5, 0.75))
    return base + (x[0] - base) * (importance >= m + 1.5 * (b - a))


def f_ram(base: Array, x: Array) -> Any:
    d = x - base
    changed = np.abs(d) > 0.01
    count = changed.sum(axis=0)
    return base + (d * changed).sum(axis=0) / np.maximum(count, 1)


def f_ramplus(base: Array, x: Array) -> Any:
    d = x - base
    changed = np.abs(d) > 0.012
    count = changed.sum(axis=0)
    rho = [(c & (count > 1)).sum() / max((c & (count == 1)).sum(), 1e-5) for c in changed]
    boost = (1 + 0.5 * np.clip(rho, 0, 0.3))[:, None, None]
    return base + (d * changed * (count == 1) * boost + d * changed * (count > 1) / np.maximum(count, 1)).sum(axis=0)


W = {"weight": [0.5, 0.3, 0.4]}
CASES: dict[str, tuple[str, Callable[[Array, Array], Any], int, bool, dict[str, Any]]] = {
    "linear": ("linear", f_linear, 3, False, W),
    "slerp": ("slerp", f_slerp, 1, True, {"t": 0.3}),
    "nuslerp": ("nuslerp", f_nuslerp, 2, True, {"weight": [0.6, 0.4]}),
    "nuslerp rows": ("nuslerp", f_nuslerp_rows, 2, True, {"weight": [0.6, 0.4], "nuslerp_flatten": False}),
    "nuslerp columns": (
        "nuslerp",
        f_nuslerp_columns,
        2,
        False,
        {"weight": [0.6, 0.4], "nuslerp_flatten": False, "nuslerp_row_wise": True},
    ),
    "multislerp": ("multislerp", f_multislerp, 3, True, {"weight": [0.5, 0.3, 0.2]}),
    "karcher": ("karcher", f_karcher, 3, False, {"max_iter": 50, "tol": 1e-13}),
    "task_arithmetic": (
        "task_arithmetic",
        f_task,
        3,
        True,
        {"weight": [0.5, -0.2, 0.4], "normalize": True, "lambda": 0.7},
    ),
    "ties": ("ties", f_ties, 3, True, W | {"density": [0.5, 0.2, 0.9], "lambda": 1.3}),
    "ties rescaled": ("ties", f_ties_rescaled, 3, True, W | {"density": 0.5, "rescale": True, "normalize": False}),
    "breadcrumbs": ("breadcrumbs", f_breadcrumbs, 3, True, W | {"density": 0.6, "gamma": 0.1}),
    "breadcrumbs_ties": ("breadcrumbs_ties", f_breadcrumbs_ties, 3, True, W | {"density": 0.8, "gamma": 0.5}),
    "model_stock": ("model_stock", f_stock, 3, True, {}),
    "model_stock rows": ("model_stock", f_stock_rows, 3, True, {"filter_wise": True}),
    "nearswap": ("nearswap", f_nearswap, 1, True, {"t": 0.004}),
    "sce": ("sce", f_sce, 3, True, {"select_topk": 0.4}),
    "arcee_fusion": ("arcee_fusion", f_fusion, 1, True, {}),
    "ram": ("ram", f_ram, 3, True, {"epsilon": 0.01}),
    "ramplus_tl": ("ramplus_tl", f_ramplus, 3, True, {"epsilon": 0.012, "r": 0.5, "alpha": 0.3}),
    "passthrough": ("passthrough", lambda base, x: 0.7 * x[0], 1, False, {"scale": 0.7}),
}


@pytest.mark.parametrize("elements", [1 << 16, 500])
@pytest.mark.parametrize("case", CASES)
def test_a_method_is_its_formula(case: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK_ELEMENTS", elements)
    method, formula, count, with_base, parameters = CASES[case]
    base, models = fine_tunes(count, SHAPE, sigma=0.02)
    if method in ("slerp", "karcher"):  # far apart, so that the arc is one
        models = [fine_tunes(0, SHAPE, seed=i + 5)[0] for i in range(count)]
    for kind, tolerance in ((np.float64, 1e-10), (np.float32, 3e-6)):
        given = [one.astype(kind) for one in models]
        found = ours(method, given, base.astype(kind) if with_base else None, **parameters)
        assert found.dtype == kind
        wanted = formula(base.astype(np.float64), wide(given))
        different = np.abs(found - wanted) > tolerance * np.abs(wanted).max()
        assert different.mean() <= (1e-3 if method == "arcee_fusion" else 0), case


def test_every_method_has_a_formula_or_is_random() -> None:
    random = {"dare_ties", "dare_linear", "della", "della_linear"}
    assert {one[0] for one in CASES.values()} | random == set(METHODS) == set(SPECS)


def test_sce_keeps_no_element_whose_variance_is_not_selected() -> None:
    base, models = fine_tunes(3, SHAPE)
    assert np.array_equal(ours("sce", models, base, select_topk=0), base)


def test_a_tensor_of_one_dimension_is_one_row() -> None:
    base, models = fine_tunes(2, (72,))
    flat = ours("nuslerp", models, base, weight=[0.6, 0.4], nuslerp_flatten=False)
    np.testing.assert_allclose(flat, ours("nuslerp", models, base, weight=[0.6, 0.4]), rtol=1e-6)


def test_opposite_directions_that_cancel_are_refused_or_averaged() -> None:
    _, (one,) = fine_tunes(1)
    found = ours("multislerp", [one, -one], None, weight=[0.5, 0.5])
    np.testing.assert_allclose(found, 0 * one, atol=1e-7)


@pytest.mark.parametrize("zeros", [1, 3])
def test_karcher_of_zeros(zeros: int) -> None:
    _, models = fine_tunes(3)
    models[:zeros] = [np.zeros_like(models[0])] * zeros
    found = ours("karcher", models)
    assert np.isfinite(found).all()
    assert (np.abs(found).max() == 0) == (zeros == 3)
