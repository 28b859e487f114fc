"""Panels of points: each where its numbers say, with the interval that it has."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from trine.study.scatter import Panel, Point, scatter_chart

NS = "{http://www.w3.org/2000/svg}"


def drawn(points: list[Point], panels: int = 1) -> ElementTree.Element:
    panel = Panel("quality & cost", "MiB", "bits", points)
    return ElementTree.fromstring(scatter_chart("a < b", [panel] * panels, 2))


def places(chart: ElementTree.Element) -> list[tuple[float, float]]:
    (group, *_) = chart.iter(f"{NS}g")
    return [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in group.iter(f"{NS}circle")]


def bars(chart: ElementTree.Element) -> list[tuple[float, float]]:
    lines = [one.attrib for one in chart.iter(f"{NS}line") if one.attrib.get("stroke-width") == "1.5"]
    return [(float(one["y1"]), float(one["y2"])) for one in lines]


def test_points_lie_where_their_numbers_say_and_bars_around_them() -> None:
    chart = drawn(
        [Point("a", 1.0, 0.1, 0.05, 0.15), Point("b", 3.0, -0.2, -0.4, 0.0), Point("c", 2.0, 0.0, math.nan, math.inf)]
    )
    (a, b, c), lines = places(chart), bars(chart)
    assert a[0] < c[0] < b[0]
    assert a[1] < c[1] < b[1]
    assert len(lines) == 2
    for place, (low, high) in zip((a, b), lines, strict=True):
        assert high < place[1] < low
        assert abs((low + high) / 2 - place[1]) < 0.11


def test_what_has_no_number_is_left_out_and_everything_is_inside() -> None:
    names = [f"arm-number-{i}" for i in range(16)]
    points = [Point(name, float(i), 0.1 * i, -math.inf, math.inf) for i, name in enumerate(names)]
    chart = drawn([*points, Point("none", 1.0, math.nan, math.nan, math.nan)], panels=3)
    _, _, width, height = map(float, chart.attrib["viewBox"].split())
    texts = [one.text for one in chart.iter(f"{NS}text")]
    assert all(texts.count(name) == 1 for name in names)
    assert len(bars(chart)) == 0
    marks = len(list(chart.iter(f"{NS}circle"))) + len(list(chart.iter(f"{NS}rect"))) - 1
    assert marks == 3 * 16 + 17
    for one in chart.iter(f"{NS}text"):
        assert 0 <= float(one.attrib["x"]) <= width
        assert 0 <= float(one.attrib["y"]) <= height


def test_a_chart_without_points_is_one_still() -> None:
    assert len(places(drawn([]))) == 0
