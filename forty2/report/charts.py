"""Charts as SVG to be put into a page, drawn with matplotlib.

An SVG holds the axes, the tick labels and the data. Its title, its unit and its legend belong to
the page, where they wrap. It has no background, its text takes the page's font and colour, and it
has no references, neither internal nor external. The same data give the same bytes. Labels may hold
any text that XML can hold, and are drawn literally.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from forty2.report.axes import (
    PLAIN,
    SHARE_TICKS,
    STEPS,
    Axis,
    is_drawable,
    round_ticks,
    whole_ticks,
    writer,
)
from forty2.report.canvas import FONT_SIZE, GREY, new_canvas, room_for, rows_canvas, shorten

COLOURS = ("#2f7fc1", "#d2622f", "#4b9a57", "#9468bd", "#a88000", "#6f7b8a")
"""Colours of series, readable on white and on black."""
MAP_COLOURS = (*COLOURS, "#c2528b", "#2a9d9d", "#8c6d46", "#5d6bd6")
"""Colours of a map's groups."""
_ABOVE = 1.08
"""Height of parallel coordinates with the room for the names of their upper ends."""
_FEW = 30
"""A line of at most this many points has a dot at each."""


class Point(NamedTuple):
    """A labelled value with its interval."""

    label: str
    value: float
    low: float
    high: float
    margin: float | None = None
    """Place of the largest loss that counts as none, of a change; None: nothing is drawn."""
    worse: bool = False
    """Whether it is a change for the worse, which its figure says."""


class IntervalPoint(NamedTuple):
    """A point of a line with its interval."""

    x: float
    value: float
    low: float
    high: float


class LegendEntry(NamedTuple):
    """The name of a series and the look of its line."""

    name: str
    colour: str
    dashed: bool = False


class Chart(NamedTuple):
    """A drawing, and the words that the page puts around it."""

    title: str
    unit: str
    """Quantity and unit of the values; may be empty."""
    legend: list[LegendEntry]
    """Entries of the series; empty if there is only one."""
    svg: str
    """The drawing, safe to be put into a page without escaping."""


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x: Axis = STEPS,
    y: Axis = PLAIN,
    diagonal: str | None = None,
    dotted: Collection[str] = (),
    mark: tuple[str, float] | None = None,
) -> Chart | None:
    """Draw one line per series.

    Args:
        series: (x, y) points by name; those that are not finite are left out.
        x, y: the axes; one of shares runs from 0% to 100%.
        diagonal: name of a dashed line from corner to corner, if there is to be one.
        dotted: series that have a dot at each point, however many there are.
        mark: name and x of a dashed vertical line; it is left out where no series reaches.

    Returns:
        None if there is no point to draw.
    """
    lines = {
        name: [(a, b) for a, b in points if is_drawable(a, b)] for name, points in series.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    x_ticks = SHARE_TICKS if x.from_0_to_1 else whole_ticks(min(xs), max(xs))
    y_ticks = SHARE_TICKS if y.from_0_to_1 else round_ticks(min(ys), max(ys), y)
    x_labels, y_labels = (
        list(map(writer(ticks, axis), ticks)) for ticks, axis in ((x_ticks, x), (y_ticks, y))
    )
    with new_canvas(240, room_for(y_labels), right=16, bottom=40) as canvas:
        axes = canvas.axes
        canvas.set_ticks("x", x_ticks, x_labels)
        canvas.set_ticks("y", y_ticks, y_labels)
        first, last = (0.0, 1.0) if x.from_0_to_1 else (min(xs), max(xs))
        axes.set_xlim(*((first, last) if last > first else (first - 0.5, first + 0.5)))
        axes.set_ylim(y_ticks[0], y_ticks[-1])
        axes.set_xlabel(x.label, fontsize=FONT_SIZE, parse_math=False)
        legend = []
        for n, (name, points) in enumerate(lines.items()):
            legend.append(LegendEntry(name, COLOURS[n % len(COLOURS)]))
            canvas.line(points, legend[-1].colour, 1.6 if len(points) <= 100 else 1.1)
            for point in points if len(points) <= _FEW or name in dotted else ():
                canvas.dot(point, legend[-1].colour, 6)
        if diagonal is not None:
            legend.append(LegendEntry(diagonal, GREY, dashed=True))
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
        if mark is not None and min(xs) <= mark[1] <= max(xs):
            legend.append(LegendEntry(mark[0], GREY, dashed=True))
            axes.axvline(mark[1], color=GREY, linewidth=1.4, linestyle=(0, (4, 3)), clip_on=False)
        svg = canvas.svg(title)
    return Chart(title, y.label, legend if len(legend) > 1 else [], svg)


def interval_chart(
    title: str, points: Sequence[Point], *, axis: Axis = PLAIN, change: bool = False
) -> Chart | None:
    """Draw one row per point: its label, a dot on its interval, and its value in figures.

    Args:
        points: those that are not finite are left out.
        change: whether values are changes: figures then have a sign, and a line marks zero.

    Returns:
        None if there is no point to draw.
    """
    points = [point for point in points if is_drawable(*point[1:4], point.margin or 0.0)]
    if not points:
        return None
    axis = axis._replace(from_0_to_1=axis.from_0_to_1 and not change)
    margins = [point.margin for point in points if point.margin is not None]
    ends = [end for point in points for end in point[2:4]] + margins + [0.0] * change
    ticks = round_ticks(min(ends), max(ends), axis)
    write = writer(ticks, axis, change, more=1)
    figures = [f"{write(point.value)}{', worse' if point.worse else ''}" for point in points]
    with rows_canvas([point.label for point in points], figures, 24) as canvas:
        canvas.value_axis(ticks, axis, change)
        for row, point in enumerate(points):
            low, high, colour = write(point.low), write(point.high), COLOURS[int(point.worse)]
            words = f"{point.label}: {figures[row]} ({low} to {high})"
            if point.margin is not None:
                mark = [(point.margin, row - 0.35), (point.margin, row + 0.35)]
                canvas.explain(canvas.line(mark, GREY, 2), f"margin: {write(point.margin)}")
                words += f", margin {write(point.margin)}"
            canvas.line([(point.low, row), (point.high, row)], colour, 2)
            canvas.explain(canvas.dot((point.value, row), colour, 8), words)
        svg = canvas.svg(title)
    return Chart(title, axis.label, _interval_legend(points), svg)


def interval_line_chart(
    title: str,
    series: Mapping[str, Sequence[IntervalPoint]],
    *,
    x: Axis,
    y: Axis,
    change: bool = False,
) -> Chart | None:
    """Draw one line per series, with an upright bar for the interval of each point.

    Args:
        series: points by name; those that are not finite are left out.
        x, y: the axes. Bars of different series at one x stand side by side.
        change: whether values are changes: figures then have a sign, and a line marks zero.

    Returns:
        None if there is no point to draw.
    """
    lines = {
        name: [point for point in points if is_drawable(*point)] for name, points in series.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    drawn = [point for points in lines.values() for point in points]
    ends = [0.0] * change + [end for point in drawn for end in (point.low, point.high)]
    x_ticks = whole_ticks(min(p.x for p in drawn), max(p.x for p in drawn))
    y_ticks = round_ticks(min(ends), max(ends), y._replace(from_0_to_1=False))
    first, last = min(p.x for p in drawn), max(p.x for p in drawn)
    beside = 0.012 * (last - first or 1.0)
    write_x, write_y = writer(x_ticks, x), writer(y_ticks, y, change, more=1)
    y_labels = list(map(writer(y_ticks, y, change), y_ticks))
    legend = []
    with new_canvas(240, room_for(y_labels), right=16, bottom=40) as canvas:
        canvas.set_ticks("x", x_ticks, list(map(write_x, x_ticks)))
        canvas.set_ticks("y", y_ticks, y_labels)
        canvas.axes.set_xlim(first - 2 * beside, last + 2 * beside * len(lines))
        canvas.axes.set_ylim(y_ticks[0], y_ticks[-1])
        canvas.axes.set_xlabel(x.label, fontsize=FONT_SIZE, parse_math=False)
        if change:
            canvas.axes.axhline(0, color=GREY, linewidth=1.4)
        for n, (name, points) in enumerate(lines.items()):
            colour = COLOURS[n % len(COLOURS)]
            legend.append(LegendEntry(name, colour))
            canvas.line([(p.x + n * beside, p.value) for p in points], colour, 1.6)
            for p in points:
                place = p.x + n * beside
                canvas.line([(place, p.low), (place, p.high)], colour, 2)
                words = (
                    f"{name}, {p.x:g}: {write_y(p.value)} ({write_y(p.low)} to {write_y(p.high)})"
                )
                canvas.explain(canvas.dot((place, p.value), colour, 7), words)
        svg = canvas.svg(title)
    return Chart(title, y.label, legend if len(legend) > 1 else [], svg)


def _interval_legend(points: Sequence[Point]) -> list[LegendEntry]:
    """Name the colours of changes and the marks of their margins, if there are any."""
    legend = []
    if any(point.worse for point in points):
        legend = [LegendEntry("worse", COLOURS[1])]
        if not all(point.worse for point in points):
            legend.append(LegendEntry("not worse", COLOURS[0]))
    if any(point.margin is not None for point in points):
        legend.append(LegendEntry("margin: a smaller loss is no cost", GREY))
    return legend


def change_bars(
    title: str, changes: Sequence[tuple[str, float]], *, axis: Axis = PLAIN
) -> Chart | None:
    """Draw one bar per labelled change, to the right of zero or to the left of it.

    Args:
        changes: those that are not finite are left out.

    Returns:
        None if there is no change to draw.
    """
    changes = [(label, value) for label, value in changes if is_drawable(value)]
    if not changes:
        return None
    values = [value for _, value in changes]
    ticks = round_ticks(min(0.0, *values), max(0.0, *values), axis)
    figures = list(map(writer(ticks, axis, True, more=1), values))
    with rows_canvas([label for label, _ in changes], figures, 19) as canvas:
        canvas.value_axis(ticks, axis, True)
        for row, (label, value) in enumerate(changes):
            colour = COLOURS[0] if value >= 0 else COLOURS[1]
            bar = canvas.axes.barh(row, value, height=0.62, color=colour, clip_on=False)[0]
            canvas.explain(bar, f"{label}: {figures[row]}")
        svg = canvas.svg(title)
    return Chart(title, axis.label, [], svg)


def trade_off_chart(
    title: str, points: Sequence[tuple[str, float, float]], *, x: Axis, y: Axis
) -> Chart | None:
    """Draw a dot per labelled point, and a line through those that no other one beats in both.

    Args:
        points: label, x and y; a lower x and a higher y are better. Those that are not finite are
            left out.

    Returns:
        None if there is no point to draw.
    """
    points = [point for point in points if is_drawable(*point[1:])]
    if not points:
        return None
    front = pareto_front([(a, b) for _, a, b in points])
    xs, ys = zip(*((a, b) for _, a, b in points), strict=True)
    x_ticks, y_ticks = round_ticks(min(xs), max(xs), x), round_ticks(min(ys), max(ys), y)
    write_x, write_y = writer(x_ticks, x), writer(y_ticks, y)
    exact_x, exact_y = writer(x_ticks, x, more=1), writer(y_ticks, y, more=1)
    x_labels, y_labels = list(map(write_x, x_ticks)), list(map(write_y, y_ticks))
    with new_canvas(240, room_for(y_labels), right=16, bottom=40) as canvas:
        canvas.set_ticks("x", x_ticks, x_labels)
        canvas.set_ticks("y", y_ticks, y_labels)
        canvas.axes.set_xlim(x_ticks[0], x_ticks[-1])
        canvas.axes.set_ylim(y_ticks[0], y_ticks[-1])
        canvas.axes.set_xlabel(x.label, fontsize=FONT_SIZE, parse_math=False)
        line = sorted((points[n][1:] for n in front), key=lambda point: point[0])
        canvas.line(line, COLOURS[0], 1.2)
        for n, (label, a, b) in enumerate(points):
            dot = canvas.dot((a, b), COLOURS[0] if n in front else GREY, 8)
            canvas.explain(dot, f"{label}: {exact_y(b)}, {exact_x(a)}")
        svg = canvas.svg(title)
    legend = [LegendEntry("not beaten in both", COLOURS[0]), LegendEntry("others", GREY)]
    return Chart(title, y.label, legend, svg)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of points (x, y) that no other one beats: lower x, or higher y, or both."""
    return [
        n
        for n, (a, b) in enumerate(points)
        if not any(c <= a and d >= b and (c, d) != (a, b) for c, d in points)
    ]


def parallel_chart(
    title: str,
    axes: Sequence[str],
    lines: Sequence[tuple[str, Sequence[float]]],
    ends: Sequence[tuple[str, str]],
    *,
    best: str | None,
) -> Chart | None:
    """Draw parallel coordinates: one upright axis per quantity, one line per labelled combination.

    Args:
        axes: names of the quantities.
        lines: label, and place on each axis from 0 to 1; those that are not finite are left out.
        ends: what the lower and the upper end of each axis stand for.
        best: label of the line to point out.

    Returns:
        None if there are not two axes, or there is no line.
    """
    lines = [(label, places) for label, places in lines if is_drawable(*places)]
    if len(axes) < 2 or not lines:
        return None
    with new_canvas(260, 40, right=40, bottom=44) as canvas:
        canvas.axes.set_xlim(0, len(axes) - 1)
        canvas.axes.set_ylim(0, _ABOVE)
        canvas.set_ticks("y", [], [])
        canvas.set_ticks("x", range(len(axes)), [""] * len(axes))
        for n, (name, (low, high)) in enumerate(zip(axes, ends, strict=True)):
            canvas.axes.axvline(n, 0, 1 / _ABOVE, color=GREY, linewidth=1, clip_on=False)
            for text, place, shift in ((name, 0, -34), (low, 0, -18), (high, 1, 5)):
                canvas.axes.annotate(
                    shorten(text),
                    (n, place),
                    (0, shift),
                    textcoords="offset points",
                    ha="center",
                    fontsize=FONT_SIZE,
                    parse_math=False,
                    annotation_clip=False,
                )
        for label, places in sorted(lines, key=lambda line: line[0] == best):
            colour, width = (COLOURS[1], 2.4) if label == best else (COLOURS[0], 1.2)
            drawn = canvas.line(list(enumerate(places)), colour, width)
            canvas.explain(drawn, label)
        svg = canvas.svg(title)
    legend = [LegendEntry("best mean", COLOURS[1]), LegendEntry("others", COLOURS[0])]
    return Chart(title, "", legend if best is not None else [], svg)


class MapPoint(NamedTuple):
    """A point of a map."""

    x: float
    y: float
    group: int
    """Place of its group's name."""
    marked: bool
    text: str
    """Its tooltip."""


def map_chart(title: str, groups: Sequence[str], points: Sequence[MapPoint]) -> Chart | None:
    """Draw a map: a colour for each group, a dot for each point, a cross for each marked one.

    Args:
        groups: names; points of groups beyond the colours repeat them, and the tooltip tells them.
        points: those that are not finite are left out.

    Returns:
        None if there is no point to draw.
    """
    points = [point for point in points if is_drawable(point.x, point.y)]
    if not points:
        return None
    left, right = _with_room([point.x for point in points])
    low, high = _with_room([point.y for point in points])
    arm, rise = (right - left) / 110, (high - low) / 95
    with new_canvas(300, 8, right=8, bottom=8) as canvas:
        canvas.set_ticks("x", [], [])
        canvas.set_ticks("y", [], [])
        canvas.axes.set_xlim(left, right)
        canvas.axes.set_ylim(low, high)
        for point in sorted(points, key=lambda point: point.marked):
            x, y, colour = point.x, point.y, MAP_COLOURS[point.group % len(MAP_COLOURS)]
            if point.marked:
                cross = [(x - arm, y - rise), (x + arm, y + rise), (math.nan, math.nan)]
                cross += [(x - arm, y + rise), (x + arm, y - rise)]
                drawn = canvas.line(cross, colour, 1.8)
            else:
                drawn = canvas.dot((x, y), colour, 4)
                drawn.set_alpha(0.45)
            canvas.explain(drawn, point.text)
        svg = canvas.svg(title)
    legend = [LegendEntry(name, MAP_COLOURS[n % len(MAP_COLOURS)]) for n, name in enumerate(groups)]
    return Chart(title, "", legend, svg)


def _with_room(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis that holds these values off its edges."""
    room = (max(values) - min(values)) * 0.04 or 1.0
    return min(values) - room, max(values) + room
