"""Selection without sorting equals selection by a full stable sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trine.merge.dtypes import Array
from trine.merge.methods import select
from trine.merge.methods.select import Cut, largest


def spans(size: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, size)) for start in range(0, size, step)]


def selected(values: Array, cut: Cut, step: int) -> Array:
    return np.concatenate([cut.mask(values[a:b], a) for a, b in spans(len(values), step)])


def by_sorting(values: Array, count: int) -> Array:
    mask = np.zeros(len(values), bool)
    mask[np.argsort(-values, kind="stable")[:count]] = True
    return mask


def check(values: Array, ranks: list[int], step: int) -> None:
    cuts = largest(lambda a, b: [values[a:b].copy()], spans(len(values), step), [ranks])[0]
    for rank, cut in zip(ranks, cuts, strict=True):
        np.testing.assert_array_equal(selected(values, cut, step), by_sorting(values, rank), err_msg=str(rank))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 3e-40, 1e30, float("inf")]), min_size=1, max_size=60),
    st.integers(1, 20),
    st.data(),
)
def test_among_many_equals(values: list[float], step: int, data: st.DataObject) -> None:
    array = np.array(values, np.float32)
    check(array, [data.draw(st.integers(0, len(values)))], step)


KINDS = ["normal", "bf16", "zeros", "few", "sorted", "two scales", "constant"]


def numbers(kind: str, size: int) -> Array:
    rng = np.random.default_rng(3)
    values = np.abs(rng.standard_normal(size)).astype(np.float32)
    match kind:
        case "bf16":
            return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
        case "zeros":
            return values * (rng.random(size) < 0.3)
        case "few":
            return np.floor(values * 2)
        case "sorted":
            return np.sort(values)
        case "two scales":
            values[: size // 3] *= 1000
        case "constant":
            values[:] = 0.25
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_sampled_tensor(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_COLLECT", 1000)
    size = 70_000
    check(numbers(kind, size), [1, 700, size // 2, size - 1, 0, size], 8192)


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_sample_misleads(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets that miss on purpose: the histogram finds the cut all the same."""
    values = numbers(kind, 40_000)

    def wrong(scores: select.Scores, size: int, brackets: list[select._Bracket]) -> None:
        for bracket in brackets:
            bracket.low, bracket.high = -2.0, -1.0

    monkeypatch.setattr(select, "_COLLECT", 1000)
    monkeypatch.setattr(select, "_enclose", wrong)
    check(values, [1, 400, 20_000, 39_999], 4096)


def test_several_streams_at_once() -> None:
    one, two = numbers("normal", 5000), numbers("few", 5000)
    found = largest(lambda a, b: [one[a:b], two[a:b]], spans(5000, 512), [[100], [2500, 10]])
    np.testing.assert_array_equal(selected(one, found[0][0], 512), by_sorting(one, 100))
    np.testing.assert_array_equal(selected(two, found[1][0], 512), by_sorting(two, 2500))
    np.testing.assert_array_equal(selected(two, found[1][1], 512), by_sorting(two, 10))


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_those_that_are_not_zero(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_COLLECT", 1000)
    values = numbers(kind, 70_000)
    for share in (0.0, 0.003, 0.4, 1.0):
        cut = largest(lambda a, b: [values[a:b].copy()], spans(70_000, 8192), [[share]])[0][0]
        count = len(values) if share == 1 else int(share * np.count_nonzero(values))
        np.testing.assert_array_equal(selected(values, cut, 8192), by_sorting(values, count))
