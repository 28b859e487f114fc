"""Charts: well-formed, complete, right about scale and order."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from trine.study.svg import Curve, line_chart

NS = "{http://www.w3.org/2000/svg}"


def drawn(log: bool = False, **curves: list[float]) -> ElementTree.Element:
    made = [Curve(n, range(len(y)), y, [v * 0.9 for v in y], [v * 1.1 for v in y]) for n, y in curves.items()]
    return ElementTree.fromstring(line_chart("a < b & c", "tokens", "bits", made, log))


def texts(chart: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in chart.iter(f"{NS}text")]


def points(chart: ElementTree.Element) -> list[list[tuple[float, float]]]:
    lines = [one.attrib["points"].split() for one in chart.iter(f"{NS}polyline")]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in line)] for line in lines]


def test_a_line_a_band_and_a_name_for_every_curve() -> None:
    chart = drawn(first=[3, 2, 1], second=[4, 4, 4])
    assert len(points(chart)) == len(list(chart.iter(f"{NS}polygon"))) == 2
    assert {"first", "second", "a < b & c", "tokens", "bits"} <= set(texts(chart))


def test_larger_values_are_higher_up_and_everything_is_inside() -> None:
    (line,) = points(drawn(a=[1, 5, 2]))
    assert line[1][1] < line[2][1] < line[0][1]
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert all(0 <= x <= 760 and 0 <= y <= 420 for x, y in line)


@pytest.mark.parametrize("values", [[0.013, 0.0171], [1.2, 3.4, 2.2], [1200, 98_000], [-3, 4], [2, 2]])
def test_ticks_are_even_and_enclose_the_values(values: list[float]) -> None:
    chart = drawn(a=values)
    ticks = [float(one.text or "") for one in chart.iter(f"{NS}text") if one.attrib["text-anchor"] == "end"]
    steps = [after - before for before, after in pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)
    assert min(ticks) <= min(values)
    assert max(ticks) >= max(values)
    assert 3 <= len(ticks) <= 9


def test_equal_ratios_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    (line,) = points(drawn(log=True, a=[1, 10, 100]))
    assert line[0][1] - line[1][1] == pytest.approx(line[1][1] - line[2][1], abs=0.11)


def test_what_cannot_be_drawn_is_left_out() -> None:
    (line,) = points(drawn(log=True, a=[1.0, 0.0, math.nan, 3.0], gone=[0.0, 0.0]))
    assert len(line) == 2
    assert points(drawn()) == []
