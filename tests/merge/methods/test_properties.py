"""What must hold of every method whatever the numbers: order of models, scale, identity."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merge.tensors import fine_tunes, ours
from trine.merge.catalog import SPECS

_EACH = {"weight": 0.5, "density": 0.6, "gamma": 0.05, "epsilon": 0.1}
_SHARED = {"t": 0.4, "select_topk": 0.5}
RANDOM = ("dare_ties", "dare_linear", "della", "della_linear")


def options(method: str, models: int) -> dict[str, Any]:
    spec = SPECS[method]
    found: dict[str, Any] = {name: [_EACH[name]] * models for name in spec.inputs if name in _EACH}
    return found | {name: _SHARED[name] for name in spec.shared if name in _SHARED}


def several(method: str) -> int:
    most = SPECS[method].most
    return 3 if most is None else most


WITH_BASE = [name for name, spec in SPECS.items() if spec.base != "ignored"]
SYMMETRIC = [name for name, spec in SPECS.items() if spec.most is None and name not in RANDOM]


@pytest.mark.parametrize("method", SYMMETRIC)
@given(order=st.permutations(range(3)), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=8)
def test_the_order_of_models_does_not_matter(method: str, order: list[int], seed: int) -> None:
    base, models = fine_tunes(3, (12, 16), seed=seed)
    given_base = base if SPECS[method].base == "required" else None
    weights = {"weight": [0.5, 0.3, 0.2]} if "weight" in SPECS[method].inputs else {}
    one = ours(method, models, given_base, **options(method, 3) | weights)
    weights = {name: [values[i] for i in order] for name, values in weights.items()}
    other = ours(method, [models[i] for i in order], given_base, **options(method, 3) | weights)
    np.testing.assert_allclose(one, other, atol=1e-6)


SCALED = [name for name in SPECS if name not in ("nearswap", "ram", "ramplus_tl", "arcee_fusion")]


@pytest.mark.parametrize("method", SCALED)
@given(power=st.integers(-8, 8), seed=st.integers(0, 50))
@settings(deadline=None, max_examples=8)
def test_scaled_inputs_give_the_scaled_output(method: str, power: int, seed: int) -> None:
    base, models = fine_tunes(several(method), (12, 16), seed=seed)
    given_base = None if SPECS[method].base == "ignored" else base
    scale = 2.0**power
    one = ours(method, models, given_base, **options(method, len(models)))
    other_base = None if given_base is None else given_base * scale
    other = ours(method, [x * scale for x in models], other_base, **options(method, len(models)))
    np.testing.assert_allclose(other, one * scale, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("method", WITH_BASE)
@given(seed=st.integers(0, 50))
@settings(deadline=None, max_examples=5)
def test_models_equal_to_the_base_give_the_base(method: str, seed: int) -> None:
    base, _ = fine_tunes(0, (12, 16), seed=seed)
    count = several(method)
    found = ours(method, [base.copy() for _ in range(count)], base, **options(method, count))
    np.testing.assert_allclose(found, base, rtol=1e-6)


@pytest.mark.parametrize("method", ["linear", "karcher", "multislerp", "nuslerp", "passthrough"])
@given(seed=st.integers(0, 50))
@settings(deadline=None, max_examples=5)
def test_equal_models_give_themselves(method: str, seed: int) -> None:
    base, _ = fine_tunes(0, (12, 16), seed=seed)
    count = several(method)
    found = ours(method, [base.copy() for _ in range(count)], None, **options(method, count))
    np.testing.assert_allclose(found, base, rtol=2e-6)


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
def test_density_one_keeps_everything_and_zero_as_good_as_nothing(method: str) -> None:
    base, models = fine_tunes(2)
    weights = {"weight": [0.5, 0.7]}
    normalize = method == "ties"
    whole = ours(method, models, base, density=1.0, **weights)
    peer = "task_arithmetic" if method == "breadcrumbs" else "ties"
    np.testing.assert_array_equal(whole, ours(peer, models, base, normalize=normalize, **weights))
    np.testing.assert_array_equal(ours(method, models, base, density=0.0, **weights), base)


def test_a_density_above_zero_keeps_one_element() -> None:
    base, models = fine_tunes(1)
    found = ours("ties", models, base, weight=[1.0], density=1e-9)
    assert np.count_nonzero(found != base) == 1
    assert np.abs(models[0] - base).argmax() == np.flatnonzero((found != base).reshape(-1))[0]
