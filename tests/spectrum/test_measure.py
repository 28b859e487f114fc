"""Both measures against fp64 SVDs, an independent statement of the published procedure, and planted signals."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trine.spectrum.measure import ACCURACY, Measure, measure_matrix, singular_values
from trine.spectrum.noise import calibrated, marchenko_pastur_median, published
from trine.spectrum.singular import Values, by_gram, by_qr, look

SHAPES = [
    *((64, 64), (256, 256), (400, 400), (512, 128), (128, 512), (300, 200)),
    *((200, 700), (1024, 64), (96, 480), (333, 77), (40, 1000), (500, 480)),
]


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def power_law(seed: int, rows: int, columns: int, exponent: float) -> Tensor:
    small = min(rows, columns)
    left = torch.linalg.qr(drawn(seed, rows, small).double()).Q
    right = torch.linalg.qr(drawn(seed + 1, columns, small).double()).Q
    return ((left * torch.arange(1, small + 1) ** -exponent) @ right.T).float()


def matrices() -> list[Tensor]:
    """Random, power-law, rank-deficient, with outliers; each in fp32 and rounded to bf16."""
    found = []
    for seed, (rows, columns) in enumerate([(96, 96), (160, 64), (64, 200)]):
        small = min(rows, columns)
        found.append(0.02 * drawn(seed, rows, columns))
        found += [power_law(seed, rows, columns, a) for a in (0.3, 0.7, 1.0, 2.0)]
        found.append(drawn(seed, rows, 3 * small // 4) @ drawn(seed + 9, 3 * small // 4, columns))
        outlier = drawn(seed, rows, columns)
        outlier[:, 1] *= 50
        found.append(outlier)
    return found + [one.bfloat16() for one in found]


def reference(matrix: Tensor) -> float:
    """The published procedure, said again with a full SVD."""
    values = torch.linalg.svdvals(matrix.double())
    spread = (torch.quantile(values, 0.75) - torch.quantile(values, 0.25)) / 1.349
    threshold = spread * (1 + (min(matrix.shape) / max(matrix.shape)) ** 0.5)
    noise = float(values[values <= threshold].sum()) or 1.0
    return float(values[values > threshold].sum()) / noise / float(values.max())


def snr(matrix: Tensor, measure: Measure = "calibrated") -> float:
    found = measure_matrix(matrix, measure).numbers["snr"]
    assert found is not None
    return found


def test_published_ranks_as_the_published_procedure() -> None:
    ours = torch.tensor([snr(one, "published") for one in matrices()], dtype=torch.float64)
    theirs = torch.tensor([reference(one) for one in matrices()], dtype=torch.float64)
    assert torch.equal(ours.argsort(), theirs.argsort())
    assert ((ours - theirs).abs() <= 1e-4 * theirs).all()


def conditions() -> Iterator[Tensor]:
    """Matrices of many shapes and spectra, among them those that each way of computing was made for."""
    for seed, (rows, columns) in enumerate([(96, 96), (700, 90), (130, 500), (256, 256), (64, 2000)]):
        small, noise = min(rows, columns), drawn(seed, rows, columns)
        yield 0.02 * noise
        for size in (3.0, 100.0):
            left, right = drawn(seed + 1, rows, 1), drawn(seed + 2, 1, columns)
            yield noise + size * (rows**0.5 + columns**0.5) * (left / left.norm()) @ (right / right.norm())
        yield from (power_law(seed, rows, columns, exponent) for exponent in (0.5, 1.0, 1.5))
        yield noise + 3 * power_law(seed, rows, columns, 0.8) * (small * rows) ** 0.5
        yield drawn(seed, rows, 3 * small // 4) @ drawn(seed + 9, 3 * small // 4, columns)


@pytest.mark.parametrize("measure", ["calibrated", "published"])
def test_the_snr_is_an_fp64_svds_as_nearly_as_stated(measure: Measure) -> None:
    rule, ways = {"calibrated": calibrated, "published": published}[measure], set()
    for matrix in [turned for one in conditions() for turned in (one, one.bfloat16())]:
        exact = torch.linalg.svdvals(matrix.double()).flip(0)
        found, stated = singular_values(matrix, look(matrix)[0], measure)
        known = Values(exact, 0, 1e-14 * exact, found.floor * 2.0**found.exponent, found.by)
        true = rule(known, (matrix.shape[0], matrix.shape[1]))
        assert (stated.rank, stated.snr is None) == (true.rank, true.snr is None)
        if stated.snr is not None and true.snr:
            assert stated.error < (ACCURACY if found.by != "qr" else 1e-4)
            assert abs(stated.snr - true.snr) <= stated.error * true.snr
        ways.add(found.by)
    assert ways >= {"gram", "gram64"}


def test_each_way_knows_its_error() -> None:
    for matrix in conditions():
        exact = torch.linalg.svdvals(matrix.double()).flip(0)
        largest, _ = look(matrix)
        for found in (
            by_gram(matrix, largest),
            by_gram(matrix, largest, torch.float64),
            by_qr(matrix, largest),
        ):
            off = (found.values * 2.0**found.exponent - exact).abs()
            assert float((off - 1e-13 * exact[-1]).sum()) <= float(found.error.sum()) * 2.0**found.exponent


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pure_noise_holds_no_signal(shape: tuple[int, int]) -> None:
    for seed in range(3):
        numbers = measure_matrix(0.02 * drawn(seed, *shape), "calibrated").numbers
        assert numbers["share"] < 0.01
        assert numbers["sigma"] == pytest.approx(0.02, rel=0.06)


@pytest.mark.parametrize("shape", [(256, 256), (512, 128), (96, 480)], ids=str)
@pytest.mark.parametrize("rank", [1, 5, 20])
def test_a_planted_signal_is_found_with_its_rank(shape: tuple[int, int], rank: int) -> None:
    rows, columns = shape
    left = torch.linalg.qr(drawn(1, rows, rank)).Q
    right = torch.linalg.qr(drawn(2, columns, rank)).Q
    strength = 2.0 * (rows**0.5 + columns**0.5)
    numbers = measure_matrix(drawn(3, rows, columns) + strength * left @ right.T, "calibrated").numbers
    assert numbers["rank"] == rank
    assert numbers["sigma"] == pytest.approx(1.0, rel=0.05)
    assert sum(numbers["histogram"]) == min(shape)


def test_calibrated_does_not_change_with_scale_or_transposition() -> None:
    for matrix in matrices():
        before = snr(matrix)
        for other in (
            matrix.T,
            matrix.T.contiguous(),
            1024 * matrix,
            matrix.double() * 1e-25,
            matrix.double() * 3.7e15,
        ):
            assert snr(other) == pytest.approx(before, rel=1e-6, abs=1e-12)


def test_the_median_of_marchenko_pastur() -> None:
    for rows, columns in [(1500, 1500), (1500, 750), (2000, 200)]:
        values = torch.linalg.svdvals(drawn(0, rows, columns)) ** 2 / rows
        assert float(values.median()) == pytest.approx(marchenko_pastur_median(columns / rows), rel=0.01)


@pytest.mark.parametrize("measure", ["calibrated", "published"])
@pytest.mark.parametrize(
    ("matrix", "rank", "why"),
    [
        (torch.zeros(20, 30), 0, "every value is zero"),
        (torch.full((40, 30), 0.5), 1, "rank 1 of 30"),
        (drawn(0, 40, 1) @ drawn(1, 1, 50), 1, "rank 1 of 40"),
        (torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]]), None, "2 of 4 values are NaN or infinite"),
    ],
)
def test_what_cannot_be_scored_says_why(measure: Measure, matrix: Tensor, rank: int | None, why: str) -> None:
    for one in (matrix, matrix.bfloat16()) if "rank" not in why else (matrix,):
        found = measure_matrix(one, measure)
        assert (found.numbers["snr"], found.numbers["rank"]) == (None, rank)
        assert found.problem is not None
        assert why in found.problem


def test_a_row_shows_no_noise() -> None:
    found = measure_matrix(drawn(0, 1, 300), "calibrated")
    assert found.numbers["snr"] is None
    assert found.problem is not None
    assert "1 singular value" in found.problem
