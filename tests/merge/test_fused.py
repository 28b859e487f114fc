"""Whole methods by kernels and by their twins in numpy: the same bits from fp32 and from stored bf16."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.merge.tensors import fine_tunes, inputs_of
from trine.merge import fused
from trine.merge.dtypes import Array, narrow, widen
from trine.merge.methods import inputs as blocks
from trine.merge.methods import select
from trine.merge.methods.inputs import merged
from trine.merge.methods.table import METHODS

CASES: dict[str, dict[str, Any]] = {
    "linear": {"weight": [0.5, 0.3, -0.4]},
    "task_arithmetic": {"weight": [0.5, 0.3, -0.4], "lambda": 0.7},
    "ties": {"weight": [0.5, 0.3, -0.4], "density": [0.3, 1.0, 0.0]},
    "breadcrumbs": {"weight": 0.4, "density": [0.7, 1.0, 0.2], "gamma": 0.1},
    "breadcrumbs_ties": {"weight": 0.4, "density": 0.7, "gamma": 0.1, "normalize": True},
    "dare_linear": {"weight": 0.4, "density": [0.3, 1.0, 0.9]},
    "dare_ties": {"weight": 0.4, "density": 0.5, "normalize": True, "lambda": 1.3},
    "della": {"weight": [0.5, 0.3, -0.4], "density": [0.5, 1.0, 0.6], "epsilon": 0.1},
    "della_linear": {"weight": 0.4, "density": 0.5, "epsilon": 0.2},
    "sce": {"select_topk": 0.4},
}
ROUNDED: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.4},
    "nuslerp": {"weight": [0.4, 0.6]},
    "multislerp": {"weight": 0.4},
    "karcher": {},
    "model_stock": {},
}
"""Methods whose inner products are summed in another order."""
COUNTS = {"slerp": 1, "nuslerp": 2}


@dataclass(frozen=True)
class Stored:
    """A tensor held as bf16."""

    bits: Array

    def read(self, start: int, stop: int) -> Array:
        return widen(self.bits[start:stop], "BF16", np.empty(stop - start, np.float32))

    def held(self, start: int, stop: int) -> Array:
        return self.bits[start:stop]


def results(monkeypatch: pytest.MonkeyPatch, method: str, bf16: bool, parameters: dict[str, Any]) -> list[Array]:
    """By the kernels, by numpy."""
    if fused._library() is None:
        pytest.skip("no C compiler")
    monkeypatch.setattr(select, "_COLLECT", 1000)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 3000)
    base, models = fine_tunes(COUNTS.get(method, 3), (130, 70))
    models[0][:40] = base[:40]
    given = inputs_of(method, models, None if method in ("linear", "karcher") else base, **parameters)
    if bf16:
        stored = [Stored(narrow(one.reshape(-1), "BF16")) for one in models]
        given = replace(given, models=stored, base=given.base and Stored(narrow(base.reshape(-1), "BF16")))
    one = merged(METHODS[method], given)
    monkeypatch.setattr(fused, "_library", lambda: None)
    return [one, merged(METHODS[method], given)]


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("method", CASES)
def test_kernels_and_numpy_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, method: str, bf16: bool) -> None:
    one, other = results(monkeypatch, method, bf16, CASES[method])
    np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("method", ROUNDED)
def test_kernels_and_numpy_agree(monkeypatch: pytest.MonkeyPatch, method: str, bf16: bool) -> None:
    one, other = results(monkeypatch, method, bf16, ROUNDED[method])
    np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-8)


def test_random_bits_beyond_the_first_4_billion_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block across a multiple of 2^32 changes its key there, as numpy's does."""
    if fused._library() is None:
        pytest.skip("no C compiler")
    from trine.merge.methods.prune import Rule, pruned, records

    base, models = fine_tunes(1, (1, 3000))
    given = inputs_of("dare_linear", models, base, weight=1.0, density=0.5)
    start = 2**32 - 1700

    class Far:
        def __init__(self, values: Array) -> None:
            self.values = values.reshape(-1)

        def read(self, begin: int, stop: int) -> Array:
            return self.values[begin - start : stop - start].copy()

    far = replace(given, models=[Far(models[0])], base=Far(base))
    rule = Rule("random", key=0x0123456789ABCDEF, density=0.5, scaled=True)
    kernels = fused.fused(far, far.models, far.base)
    assert kernels is not None
    found = kernels.mix([1.0], records([rule]), False, 1, 1).run(start, start + 3000)
    delta = (models[0] - base).reshape(-1)
    np.testing.assert_array_equal(found, pruned(given, rule, delta, start) + base.reshape(-1))
