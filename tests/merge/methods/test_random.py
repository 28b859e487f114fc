"""dare and della: keyed masks, the right shares, right scales."""

from __future__ import annotations

import numpy as np
import pytest

from tests.merge.tensors import fine_tunes, ours
from trine.merge.methods import inputs
from trine.merge.methods.keyed import key_of, random_bits

WEIGHTS = {"weight": [1.0], "normalize": False}


def test_bits_depend_on_the_element_alone() -> None:
    key = key_of(1, "tensor", "model")
    whole = random_bits(key, 0, 5000)
    np.testing.assert_array_equal(random_bits(key, 1234, 1000), whole[1234:2234])
    far = random_bits(key, 2**32 - 10, 20)
    np.testing.assert_array_equal(random_bits(key, 2**32, 10), far[10:])
    assert not np.array_equal(far[10:], whole[:10])


def test_bits_are_uniform_and_independent_between_keys() -> None:
    count = 1 << 18
    draws = [
        random_bits(key_of(*one), 0, count) for one in ((0, "a", "m"), (1, "a", "m"), (0, "b", "m"), (0, "a", "n"))
    ]
    for bits in draws:
        buckets = np.bincount(bits >> 24, minlength=256)
        chi = ((buckets - count / 256) ** 2 / (count / 256)).sum()
        assert 255 - 5 * 22.6 < chi < 255 + 5 * 22.6
        high = bits > 2**31
        assert abs(np.mean(high[1:] == high[:-1]) - 0.5) < 0.006
    for i, one in enumerate(draws):
        for other in draws[:i]:
            assert abs(np.corrcoef(one.astype(float), other.astype(float))[0, 1]) < 0.012


@pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
def test_dare_keeps_its_share_and_scales_by_its_inverse(density: float) -> None:
    base, models = fine_tunes(1, (256, 256))
    delta = models[0].astype(np.float64) - base
    found = ours("dare_linear", models, base, density=density, **WEIGHTS).astype(np.float64) - base
    kept = found != 0
    assert abs(kept.mean() - density) < 5 * np.sqrt(density * (1 - density) / delta.size)
    np.testing.assert_allclose(found[kept], delta[kept] / density, atol=2e-7)
    plain = ours("dare_linear", models, base, density=density, rescale=False, **WEIGHTS) - base
    np.testing.assert_allclose(plain[kept], delta[kept], atol=2e-7)


def test_dare_in_mergekits_numerics_keeps_the_sum_of_magnitudes() -> None:
    base, models = fine_tunes(1, (256, 256))
    delta = models[0] - base
    found = ours("dare_linear", models, base, stored="F32", density=0.3, **WEIGHTS) - base
    np.testing.assert_allclose(np.abs(found).sum(), np.abs(delta).sum(), rtol=1e-4)


def test_della_keeps_larger_elements_more_often() -> None:
    base, models = fine_tunes(1, (512, 128))
    delta = models[0].astype(np.float64) - base
    found = ours("della_linear", models, base, density=0.5, epsilon=0.3, **WEIGHTS).astype(np.float64) - base
    ranks = np.abs(delta).argsort(axis=1).argsort(axis=1)
    chance = 0.2 + ranks * 0.6 / 127
    kept = found != 0
    for bucket in range(8):
        here = ranks // 16 == bucket
        spread = np.sqrt(0.25 / here.sum())
        assert abs(kept[here].mean() - chance[here].mean()) < 5 * spread
    np.testing.assert_allclose(found[kept], (delta / chance)[kept], atol=3e-7)


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "della_linear"])
def test_masks_do_not_depend_on_blocks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, models = fine_tunes(2, (64, 48))
    options = {"weight": [0.5, 0.7], "density": 0.6}
    whole = ours(method, models, base, **options)
    monkeypatch.setattr(inputs, "BLOCK_ELEMENTS", 100)
    np.testing.assert_array_equal(ours(method, models, base, **options), whole)
    assert not np.array_equal(ours(method, models, base, seed=1, **options), whole)


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "della_linear"])
def test_density_one_keeps_everything_and_zero_nothing(method: str) -> None:
    base, models = fine_tunes(2)
    weights = {"weight": [0.5, 0.7]}
    peer = {"dare_ties": "ties", "della": "ties"}.get(method, "task_arithmetic")
    normalize = method == "della"
    found = ours(method, models, base, density=1.0, **weights)
    np.testing.assert_array_equal(found, ours(peer, models, base, normalize=normalize, **weights))
    np.testing.assert_array_equal(ours(method, models, base, density=0.0, **weights), base)


def test_a_row_of_one_element_has_the_density_itself() -> None:
    base, models = fine_tunes(1, (4000, 1))
    found = ours("della_linear", models, base, density=0.5, rescale=False, **WEIGHTS)
    assert abs((found != base).mean() - 0.5) < 0.05
