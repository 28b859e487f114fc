"""`numerics: mergekit` against mergekit itself, in memory, method by method and type by type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.merge.tensors import fine_tunes, mergekits, ours
from trine.merge.dtypes import Array, rounded

pytest.importorskip("mergekit")
TYPES = ["F32", "BF16", "F16"]
W3 = {"weight": [0.6, 0.4, 0.3]}
EXACT: dict[str, tuple[str, int, bool, dict[str, Any]]] = {
    "linear": ("linear", 3, False, {"weight": [0.5, 0.3, 0.2]}),
    "linear plain": ("linear", 3, False, {"weight": [0.5, -0.3, 1.5], "normalize": False}),
    "task_arithmetic": ("task_arithmetic", 3, True, {"weight": [0.6, -0.4, 0.3], "lambda": 0.7}),
    "task_arithmetic normalized": ("task_arithmetic", 3, True, {"weight": [0.6, -0.4, 0.3], "normalize": True}),
    "ties whole": ("ties", 3, True, W3 | {"density": 1.0, "lambda": 1.3}),
    "ties none": ("ties", 3, True, W3 | {"density": 0.0}),
    "ties one": ("ties", 3, True, W3 | {"density": 1e-9}),
    "ties negative": ("ties", 3, True, {"weight": [-0.6, -0.4, -0.3], "density": 1.0}),
    "ties int8_mask": ("ties", 3, True, W3 | {"density": 1.0, "normalize": False}),
    "breadcrumbs whole": ("breadcrumbs", 3, True, W3 | {"density": 1.0, "gamma": 0.2}),
    "dare_ties whole": ("dare_ties", 3, True, W3 | {"density": 1.0}),
    "dare_linear whole": ("dare_linear", 3, True, W3 | {"density": 1.0}),
    "della whole": ("della", 3, True, W3 | {"density": 1.0}),
    "nearswap": ("nearswap", 1, True, {"t": 0.003}),
    "ram": ("ram", 3, True, {"epsilon": 0.01}),
    "passthrough": ("passthrough", 1, False, {"scale": [0.7]}),
    "passthrough plain": ("passthrough", 1, False, {}),
}


def both(case: tuple[str, int, bool, dict[str, Any]], stored: str) -> tuple[Array, Array]:
    method, count, with_base, parameters = case
    base, models = fine_tunes(count, (96, 128))
    given = [rounded(one, stored) for one in models]
    own_base = rounded(base, stored) if with_base else None
    found = ours(method, given, own_base, stored=stored, **parameters)
    peer = mergekits(method, models, base if with_base else None, stored, **parameters)
    return rounded(found, stored), rounded(peer, stored)


@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize("case", EXACT)
def test_bits_are_equal(case: str, stored: str) -> None:
    found, peer = both(EXACT[case], stored)
    np.testing.assert_array_equal(found, peer)


UP_TO_EQUALS = {
    "ties": ("ties", 3, True, W3 | {"density": [0.5, 0.3, 0.7]}),
    "ties plain": ("ties", 3, True, W3 | {"density": 0.5, "normalize": False, "lambda": 1.3}),
    "breadcrumbs": ("breadcrumbs", 3, True, W3 | {"density": 0.9}),
    "breadcrumbs_ties": ("breadcrumbs_ties", 3, True, W3 | {"density": 0.8, "gamma": 0.3}),
}


@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize("case", UP_TO_EQUALS)
def test_bits_are_equal_away_from_the_thresholds(case: str, stored: str) -> None:
    """Differences lie only where some model's magnitude equals one of its thresholds; there mergekit's sort chooses."""
    method, count, _, parameters = UP_TO_EQUALS[case]
    found, peer = both(UP_TO_EQUALS[case], stored)
    base, models = fine_tunes(count, (96, 128))
    at_threshold = np.zeros(base.shape, bool)
    for i, model in enumerate(models):
        sizes = np.abs(rounded(rounded(model, stored) - rounded(base, stored), stored))
        density = parameters["density"][i] if isinstance(parameters["density"], list) else parameters["density"]
        kept = int(density * sizes.size)
        skipped = min(int(parameters.get("gamma", 0.01) * sizes.size), sizes.size - kept)
        ranked = np.sort(sizes.reshape(-1))[::-1]
        bounds = [kept] if method == "ties" else [skipped, skipped + kept]
        for bound in bounds:
            at_threshold |= sizes == ranked[bound - 1]
    different = found != peer
    assert not (different & ~at_threshold).any()
    if stored == "F32":
        assert not different.any()


CLOSE = {
    "slerp": ("slerp", 1, True, {"t": 0.4}),
    "nuslerp": ("nuslerp", 2, True, {"weight": [0.6, 0.4]}),
    "nuslerp without base": ("nuslerp", 2, False, {"weight": [0.6, 0.4]}),
    "nuslerp rows": ("nuslerp", 2, True, {"weight": [0.6, 0.4], "nuslerp_flatten": False}),
    "nuslerp columns": (
        "nuslerp",
        2,
        True,
        {"weight": [0.6, 0.4], "nuslerp_flatten": False, "nuslerp_row_wise": True},
    ),
    "nuslerp half": ("nuslerp", 2, True, {"weight": [0.5, -0.5]}),
    "multislerp": ("multislerp", 3, True, W3),
    "multislerp plain": ("multislerp", 3, False, W3 | {"normalize_weights": False}),
    "karcher": ("karcher", 3, False, {}),
    "karcher once": ("karcher", 3, False, {"max_iter": 1}),
    "model_stock": ("model_stock", 3, True, {}),
    "model_stock of two": ("model_stock", 2, True, {}),
    "model_stock rows": ("model_stock", 2, True, {"filter_wise": True}),
    "sce": ("sce", 3, True, {}),
    "sce none": ("sce", 3, True, {"select_topk": 0.0}),
    "ramplus_tl": ("ramplus_tl", 3, True, {"epsilon": 0.01}),
    "ties rescaled": ("ties", 3, True, W3 | {"density": 1.0, "rescale": True}),
}


@pytest.mark.parametrize("stored", TYPES)
@pytest.mark.parametrize("case", CLOSE)
def test_numbers_are_close(case: str, stored: str) -> None:
    """fp32 to 1e-5; narrower types, whose angles mergekit rounds too, to four steps at the tensor's largest number."""
    found, peer = both(CLOSE[case], stored)
    scale = np.abs(peer).max()
    step = {"F32": 1e-5, "BF16": 4 * 2.0**-8, "F16": 4 * 2.0**-11}[stored] * scale
    assert np.abs(found - peer).max() <= step


def test_uniform_weights_of_sce_for_small_differences() -> None:
    base, models = fine_tunes(2, (96, 128), sigma=3e-4)
    models[1] = base + 2 * (models[1] - base)
    found = ours("sce", models, base, stored="F32")
    np.testing.assert_allclose(found, mergekits("sce", models, base, "F32"), atol=1e-7)
    accurate = ours("sce", models, base)
    assert np.abs(accurate - found).max() > 1e-5, "the smaller difference weighs less without mergekit's threshold"


def test_arcee_fusion_away_from_its_threshold() -> None:
    found, peer = both(("arcee_fusion", 1, True, {}), "F32")
    assert np.mean(found != peer) < 1e-3


@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_what_follows_mergekits_own_random_mask(stored: str) -> None:
    """Its mask read off its output; the rescaled values under that mask are ours to a step."""
    base, models = fine_tunes(1, (96, 128))
    base, models = np.zeros_like(base), [rounded(models[0], stored)]
    peer = mergekits("dare_linear", models, base, stored, weight=[1.0], density=0.4)
    kept = peer != 0
    assert abs(kept.mean() - 0.4) < 0.03
    factor = np.abs(models[0]).sum(dtype=np.float64) / np.abs(models[0][kept]).sum(dtype=np.float64)
    tolerance = 1e-5 if stored == "F32" else 2.0**-6
    np.testing.assert_allclose(peer[kept], models[0][kept] * factor, rtol=tolerance)
    found = ours("dare_linear", models, base, stored=stored, weight=[1.0], density=0.4)
    own = found != 0
    own_factor = np.abs(models[0]).sum(dtype=np.float64) / np.abs(models[0][own]).sum(dtype=np.float64)
    np.testing.assert_allclose(found[own], models[0][own] * own_factor, rtol=tolerance)
