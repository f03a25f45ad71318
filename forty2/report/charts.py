"""Small SVG charts, drawn without a library so that a report is one file that works anywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 28, 36
COLOURS = ("#2a6f97", "#c8553d", "#588157", "#8d6a9f", "#b08900", "#555b6e")


class Point(NamedTuple):
    """A value with its interval."""

    label: str
    value: float
    low: float
    high: float


def line_chart(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over steps. `series` maps a name to (x, y) points; points that are not finite are left out."""
    series = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in series.items()
    }
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x, y = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT), _axis(min(ys), max(ys))
    parts = [_grid(y), _x_labels([(x(v), f"{v:g}") for v in (min(xs), max(xs))])]
    for i, points in enumerate(series.values()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x(px):.1f},{y.at(py):.1f}" for px, py in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
        )
        if len(points) == 1:
            px, py = points[0]
            parts.append(f'<circle cx="{x(px):.1f}" cy="{y.at(py):.1f}" r="3" fill="{colour}"/>')
    return _svg(title, parts, list(series))


def interval_chart(title: str, points: Sequence[Point], *, zero: bool = False) -> str:
    """Values side by side, each with its interval; `zero` draws the line of no change."""
    if not points:
        return ""
    lows, highs = [p.low for p in points], [p.high for p in points]
    y = _axis(min(lows + ([0.0] if zero else [])), max(highs + ([0.0] if zero else [])))
    step = (WIDTH - LEFT - RIGHT) / len(points)
    parts = [_grid(y)]
    labels = []
    if zero:
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y.at(0):.1f}" y2="{y.at(0):.1f}" stroke="#333"/>'
        )
    for i, point in enumerate(points):
        centre = LEFT + step * (i + 0.5)
        parts.append(
            f'<line x1="{centre:.1f}" x2="{centre:.1f}" y1="{y.at(point.low):.1f}" '
            f'y2="{y.at(point.high):.1f}" stroke="{COLOURS[0]}" stroke-width="2"/>'
            f'<circle cx="{centre:.1f}" cy="{y.at(point.value):.1f}" r="4" fill="{COLOURS[0]}">'
            f"<title>{escape(point.label)}: {point.value:.4f} ({point.low:.4f} to {point.high:.4f})</title></circle>"
        )
        labels.append((centre, point.label))
    parts.append(_x_labels(labels))
    return _svg(title, parts, [])


def change_bars(title: str, changes: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars from zero, one per label, for changes by category."""
    if not changes:
        return ""
    row, left = 16, 190
    height = TOP + row * len(changes) + 12
    largest = max(abs(value) for _, value in changes) or 1.0
    middle, reach = left + (WIDTH - left - RIGHT) / 2, (WIDTH - left - RIGHT) / 2 - 36
    parts = []
    for i, (label, value) in enumerate(changes):
        top = TOP + row * i
        length = reach * abs(value) / largest
        start = middle if value >= 0 else middle - length
        colour = COLOURS[2] if value >= 0 else COLOURS[1]
        anchor, text_x = (
            ("start", middle + length + 4) if value >= 0 else ("end", middle - length - 4)
        )
        parts.append(
            f'<text x="{left - 6}" y="{top + 11}" text-anchor="end">{escape(label)}</text>'
            f'<rect x="{start:.1f}" y="{top + 2}" width="{length:.1f}" height="{row - 5}" fill="{colour}"/>'
            f'<text x="{text_x:.1f}" y="{top + 11}" text-anchor="{anchor}">{value:+.3f}</text>'
        )
    return _svg(title, parts, [], height)


class _Axis(NamedTuple):
    low: float
    high: float

    def at(self, value: float) -> float:
        return _scale(self.low, self.high, HEIGHT - BOTTOM, TOP)(value)


def _axis(low: float, high: float) -> _Axis:
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return _Axis(low - room, high + room)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _grid(y: _Axis) -> str:
    parts = []
    for i in range(5):
        value = y.low + (y.high - y.low) * i / 4
        at = y.at(value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    return "".join(parts)


def _x_labels(labels: Sequence[tuple[float, str]]) -> str:
    return "".join(
        f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{escape(text)}</text>'
        for x, text in labels
    )


def _svg(title: str, parts: Sequence[str], legend: Sequence[str], height: int = HEIGHT) -> str:
    keys = "".join(
        f'<text x="{LEFT + 110 * i}" y="{height - 4}" fill="{COLOURS[i % len(COLOURS)]}">{escape(name)}</text>'
        for i, name in enumerate(legend)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f'<text x="{LEFT}" y="16" class="title">{escape(title)}</text>{"".join(parts)}{keys}</svg>'
    )
