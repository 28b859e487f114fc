"""A line chart as SVG text: curves with bands, axes with round ticks, a legend. Numbers in, markup out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 16, 44, 84
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, told apart by colour-blind eyes too."""


@dataclass(frozen=True)
class Curve:
    """A curve and the band around it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def line_chart(title: str, x_label: str, y_label: str, curves: Sequence[Curve], log: bool = False) -> str:
    """The chart as an SVG document; curves without a point are left out. `log`: a logarithmic value axis, on which
    values of 0 and less are left out."""
    curves = [kept for curve in curves if (kept := _drawable(curve, log)).x]
    edge = [x for curve in curves for x in curve.x] or [0.0, 1.0]
    values = [y for curve in curves for y in (*curve.low, *curve.high)] or [1.0, 10.0]
    across = Axis(min(edge), max(edge), _LEFT, _WIDTH - _RIGHT, False)
    up = Axis(min(values), max(values), _HEIGHT - _BOTTOM, _TOP, log)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        label(_LEFT, 22, title, size=15),
        *_axes(across, up, x_label, y_label),
    ]
    for i, curve in enumerate(curves):
        parts += _curve(curve, across, up, COLOURS[i % len(COLOURS)])
    parts += _legend([curve.name for curve in curves])
    return "\n".join([*parts, "</svg>"]) + "\n"


class Axis:
    """Values to pixels, linear or logarithmic, with round ticks that enclose them."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self.log, self.start, self.end = log, start, end
        if low == high:
            low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
        self.ticks = _decades(low, high) if log else _round_ticks(low, high)
        self.low, self.high = min(low, self.ticks[0]), max(high, self.ticks[-1])

    def place(self, value: float) -> float:
        low, high, value = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _round_ticks(low: float, high: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that enclose all values, about six."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in (1, 2, 5, 10) if power * one >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around all values; the powers alone beyond two decades."""
    heads = (1, 2, 5) if high / low < 100 else (1,)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = [head * 10.0**power for power in range(first, last + 1) for head in heads]
    inside = [one for one in every if low <= one <= high]
    return [max((one for one in every if one <= low), default=low), *inside, min(one for one in every if one >= high)]


def _drawable(curve: Curve, log: bool) -> Curve:
    rows = zip(curve.x, curve.y, curve.low, curve.high, strict=True)
    kept = [row for row in rows if all(math.isfinite(one) for one in row) and (not log or row[2] > 0)]
    x, y, low, high = zip(*kept, strict=True) if kept else ((), (), (), ())
    return Curve(curve.name, x, y, low, high)


def _axes(across: Axis, up: Axis, x_label: str, y_label: str) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in up.ticks:
        y = up.place(value)
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(label(_LEFT - 8, y + 4, f"{value:.6g}", anchor="end"))
    for value in across.ticks:
        x = across.place(value)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 5}" stroke="#444444"/>')
        parts.append(label(x, bottom + 19, f"{value:.6g}", anchor="middle"))
    parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="#444444"/>')
    parts.append(label((_LEFT + right) / 2, bottom + 38, x_label, anchor="middle"))
    middle = (_TOP + bottom) / 2
    turn = f' transform="rotate(-90 16 {middle:.1f})"'
    return [*parts, label(16, middle, y_label, anchor="middle", extra=turn)]


def _curve(curve: Curve, across: Axis, up: Axis, colour: str) -> list[str]:
    def points(ys: Sequence[float]) -> list[str]:
        return [f"{across.place(x):.1f},{up.place(y):.1f}" for x, y in zip(curve.x, ys, strict=True)]

    band = " ".join([*points(curve.low), *reversed(points(curve.high))])
    line = " ".join(points(curve.y))
    return [
        f'<polygon points="{band}" fill="{colour}" fill-opacity="0.15"/>',
        f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>',
    ]


def _legend(names: Sequence[str]) -> list[str]:
    parts, x, y = [], float(_LEFT), _HEIGHT - 24
    for i, name in enumerate(names):
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<line x1="{x:.0f}" x2="{x + 20:.0f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        parts.append(label(x + 26, y + 4, name))
        x += 46 + 7 * len(name)
    return parts


def label(x: float, y: float, text: str, size: int = 12, anchor: str = "start", extra: str = "") -> str:
    """A text element; `y` is its base line."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#222222"{extra}>'
        f"{escape(text)}</text>"
    )
