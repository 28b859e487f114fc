"""The kernels in C and their twins in numpy, bit for bit."""

from __future__ import annotations

import gc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.merge.tensors import ours
from trine.merge import arithmetic
from trine.merge.dtypes import Array, narrow, widen

RNG = np.random.default_rng(5)


def twins(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> tuple[Any, Any]:
    """What the kernel gives and what numpy gives; skipped without a compiler."""
    if arithmetic._kernels() is None:
        pytest.skip("no C compiler")
    one = call()
    monkeypatch.setattr(arithmetic, "_kernels", lambda: None)
    return one, call()


def bit_patterns() -> Array:
    """Every bf16 number with every kind of lower half, as fp32."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    return np.concatenate([upper | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).view(np.float32)


def test_bf16_is_rounded_to_nearest_even(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    values = bit_patterns()
    one, other = twins(monkeypatch, lambda: arithmetic.narrow(values, "BF16"))
    np.testing.assert_array_equal(one, other)
    peer = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(one[finite], peer[finite])
    assert np.isnan(widen(one[~finite], "BF16", np.empty((~finite).sum(), np.float32))).all()


def test_bf16_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.arange(1 << 16, dtype=np.uint16)

    def call() -> Array:
        out = np.empty(len(raw), np.float32)
        assert not arithmetic.widen(raw, "BF16", out)
        assert arithmetic.widen(raw[:100], "BF16", out[:100])
        return out.view(np.uint32)

    one, other = twins(monkeypatch, call)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(narrow(other.view(np.float32), "BF16")[:0x7F80], raw[:0x7F80])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_weighted_sums(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    arrays = RNG.standard_normal((count, 5001)).astype(np.float32)
    weights = RNG.standard_normal(count).tolist()
    one, other = twins(monkeypatch, lambda: arithmetic.weighted_sum(weights, [a.copy() for a in arrays]))
    np.testing.assert_array_equal(one, other)
    exact = np.tensordot(np.array(weights, np.float32).astype(np.float64), arrays.astype(np.float64), 1)
    np.testing.assert_allclose(one, exact, atol=2e-6)


def test_elections(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = [(RNG.standard_normal(5001) * (RNG.random(5001) < 0.6)).astype(np.float32) for _ in range(3)]
    deltas[1][:50] = -deltas[0][:50]
    deltas[2][:50] = 0
    one, other = twins(monkeypatch, lambda: arithmetic.agree([0.5, 0.3, -0.2], deltas))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.round(np.abs(RNG.standard_normal(5001)) * 8).astype(np.float32)
    one, other = twins(monkeypatch, lambda: arithmetic.scan(scores, 4.0, 9.0))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    from trine.merge.methods.keyed import random_bits

    one, other = twins(monkeypatch, lambda: random_bits(0x123456789ABCDEF0, 2**32 - 700, 2000))
    np.testing.assert_array_equal(one, other)


def test_merging_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, trine.merge.engine, trine.merge.estimate, trine.cli.merge; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_kernel_reads_outlives_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is free before a call is over is filled with rubbish here: no sum may change."""
    if arithmetic._kernels() is None:
        pytest.skip("no C compiler")
    filled = []

    class Spoilt:
        """The library, each call of which fills memory that is free by then."""

        def __getattr__(self, name: str) -> Any:
            function = getattr(library, name)

            def call(*arguments: Any) -> Any:
                gc.collect()
                filled.append([np.full(count, 0x1234567, np.uint64) for count in (1, 2, 3, 4) for _ in range(200)])
                return function(*arguments)

            return call

    library = arithmetic._kernels()
    arrays = [RNG.standard_normal(3000).astype(np.float32) for _ in range(2)]
    exact = 0.25 * arrays[0].astype(np.float64) + 0.75 * arrays[1]
    base, models = arrays[0].reshape(30, 100), [arrays[1].reshape(30, 100)]
    straight = ours("slerp", models, base, t=0.25)
    monkeypatch.setattr(arithmetic, "_kernels", Spoilt)
    np.testing.assert_allclose(arithmetic.weighted_sum([0.25, 0.75], [one.copy() for one in arrays]), exact, atol=1e-6)
    np.testing.assert_array_equal(ours("slerp", models, base, t=0.25), straight)
    assert filled


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32], ids=str)
def test_the_crc_is_zlibs_for_every_length_and_in_pieces(dtype: type[np.generic]) -> None:
    data = RNG.integers(0, 256, 5000, np.uint8).view(dtype)
    for size in [*range(150), 1023, 1024, len(data)]:
        assert arithmetic.crc32(data[:size]) == zlib.crc32(data[:size].tobytes())
    found = 0
    for begin, end in ((0, 3), (3, 40), (40, 333), (333, 1000), (1000, len(data))):
        found = arithmetic.crc32(data[begin:end], found)
    assert found == zlib.crc32(data.tobytes())
