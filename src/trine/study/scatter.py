"""Panels of points with error bars as one SVG text: what each arm reaches beside what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trine.study.svg import COLOURS, Axis, label

_WIDTH, _HEIGHT = 330, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 32, 50
_HEAD, _LINE, _RADIUS, _FONT = 34, 20, 4.5, 11
_APART = 3.0
"""Pixels between the names, sideways, so that no interval hides another of the same cost."""
_SHAPES = 2
"""Discs, then squares: so many times as many names as colours can be told apart."""


@dataclass(frozen=True)
class Point:
    """One arm: what it costs, what it reaches, and the interval of that (infinite ends: none is drawn)."""

    name: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Panel:
    """Axes and points; a point whose y is not finite is left out."""

    title: str
    x_label: str
    y_label: str
    points: Sequence[Point]


def scatter_chart(title: str, panels: Sequence[Panel], columns: int) -> str:
    """The panels as an SVG document, `columns` in a row, with a legend of all names. At y = 0 a line is drawn."""
    names = list(dict.fromkeys(point.name for panel in panels for point in panel.points))
    rows = -(-len(panels) // columns)
    width = columns * _WIDTH
    entries, lines = _legend(names, width, _HEAD + rows * _HEIGHT + 14)
    height = _HEAD + rows * _HEIGHT + lines * _LINE + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        label(16, 22, title, size=15),
    ]
    for i, panel in enumerate(panels):
        x, y = i % columns * _WIDTH, _HEAD + i // columns * _HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel, names), "</g>"]
    return "\n".join([*parts, *entries, "</svg>"]) + "\n"


def _panel(panel: Panel, names: Sequence[str]) -> list[str]:
    points = [one for one in panel.points if math.isfinite(one.x) and math.isfinite(one.y)]
    values = [value for one in points for value in (one.y, one.low, one.high) if math.isfinite(value)] or [-1.0, 1.0]
    costs = [one.x for one in points] or [0.0, 1.0]
    across = Axis(min(costs), max(costs), _LEFT, _WIDTH - _RIGHT)
    up = Axis(min(*values, 0.0), max(*values, 0.0), _HEIGHT - _BOTTOM, _TOP)
    parts = [label(_LEFT, 20, panel.title, size=12), *_frame(across, up, panel)]
    for one in points:
        number = names.index(one.name)
        parts += _point(one, across, up, number, (number - (len(names) - 1) / 2) * _APART)
    return parts


def _frame(across: Axis, up: Axis, panel: Panel) -> list[str]:
    bottom, right, parts = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, list[str]()
    for value in up.ticks:
        y, stroke = up.place(value), "#888888" if value == 0 else "#e2e2e2"
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{stroke}"/>')
        parts.append(label(_LEFT - 6, y + 4, f"{value:.6g}", size=_FONT, anchor="end"))
    for value in across.ticks[:: max(1, len(across.ticks) // 4)]:
        x = across.place(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" stroke="#444444"/>')
        parts.append(label(x, bottom + 16, f"{value:.6g}", size=_FONT, anchor="middle"))
    parts.append(label((_LEFT + right) / 2, bottom + 34, panel.x_label, size=_FONT, anchor="middle"))
    middle = (_TOP + bottom) / 2
    turn = f' transform="rotate(-90 14 {middle:.1f})"'
    return [*parts, label(14, middle, panel.y_label, size=_FONT, anchor="middle", extra=turn)]


def _point(point: Point, across: Axis, up: Axis, number: int, aside: float) -> list[str]:
    x, y, colour = across.place(point.x) + aside, up.place(point.y), COLOURS[number % len(COLOURS)]
    parts = [_mark(x, y, number)]
    if math.isfinite(point.low) and math.isfinite(point.high):
        low, high = up.place(point.low), up.place(point.high)
        bar = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-width="1.5"/>'
        parts.insert(0, bar)
    return parts


def _mark(x: float, y: float, number: int) -> str:
    colour = COLOURS[number % len(COLOURS)]
    if number // len(COLOURS) % _SHAPES == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS}" fill="{colour}"/>'
    side = 2 * _RADIUS
    return f'<rect x="{x - _RADIUS:.1f}" y="{y - _RADIUS:.1f}" width="{side}" height="{side}" fill="{colour}"/>'


def _legend(names: Sequence[str], width: int, top: int) -> tuple[list[str], int]:
    """Marks and names, and how many lines they fill."""
    parts, x, line = list[str](), 16.0, 0
    for number, name in enumerate(names):
        size = 36 + 7 * len(name)
        if x + size > width and x > 16:
            x, line = 16.0, line + 1
        parts += [_mark(x + 6, top + line * _LINE, number), label(x + 16, top + line * _LINE + 4, name)]
        x += size
    return parts, line + 1
