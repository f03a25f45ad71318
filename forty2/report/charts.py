"""Charts as SVG to be put into a page, drawn with matplotlib.

An SVG holds the axes, the tick labels and the data. Its title, its unit and its legend belong to
the page, where they wrap. It has no background, its text takes the page's font and colour, and it
has no references, neither internal nor external. The same data give the same bytes. Labels may hold
any text that XML can hold, and are drawn literally.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple
from xml.etree import ElementTree

if TYPE_CHECKING:  # matplotlib takes half a second to import: only where a chart is drawn
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 400
"""Width of every chart in its own units, about one pixel each on a wide screen."""
FONT_SIZE = 12
COLOURS = ("#2f7fc1", "#d2622f", "#4b9a57", "#9468bd", "#a88000", "#6f7b8a")
"""Colours of series, readable on white and on black."""
GREY = "#808080"
_LETTER = 6.7
"""Generous mean width of a letter: the font is the page's."""
_LONGEST = 26
"""Most letters of a label that are drawn; the tooltip has all of them."""
_ABOVE = 1.08
"""Height of parallel coordinates with the room for the names of their upper ends."""
_LARGEST = 1e30
"""Values beyond this are left out like infinite ones: the axes' arithmetic would overflow."""
_FEW = 30
"""A line of at most this many points has a dot at each."""


class Axis(NamedTuple):
    """A quantity with its unit and the format of its values."""

    label: str = ""
    factor: float = 1.0
    """Factor by which values are multiplied when they are written."""
    suffix: str = ""
    from_0_to_1: bool = False
    """Whether values lie in this range: a line chart shows all of it, other charts no more."""


PLAIN = Axis()
STEPS = Axis("step")


def percent(label: str) -> Axis:
    """Return an axis of shares, written from 0% to 100%."""
    return Axis(label, 100.0, "%", from_0_to_1=True)


class Point(NamedTuple):
    """A labelled value with its interval."""

    label: str
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
        name: [(a, b) for a, b in points if _is_drawable(a, b)] for name, points in series.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    xs, ys = zip(*(point for points in lines.values() for point in points), strict=True)
    x_ticks = _SHARES if x.from_0_to_1 else _whole_ticks(min(xs), max(xs))
    y_ticks = _SHARES if y.from_0_to_1 else _ticks(min(ys), max(ys), y)
    x_labels, y_labels = (
        list(map(_writer(ticks, axis), ticks)) for ticks, axis in ((x_ticks, x), (y_ticks, y))
    )
    left = 14 + _LETTER * max(map(len, y_labels))
    with _canvas(240, left, right=16, bottom=40) as canvas:
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
    points = [point for point in points if _is_drawable(*point[1:])]
    if not points:
        return None
    axis = axis._replace(from_0_to_1=axis.from_0_to_1 and not change)
    ends = [end for point in points for end in point[2:]] + [0.0] * change
    ticks = _ticks(min(ends), max(ends), axis)
    write = _writer(ticks, axis, change, more=1)
    figures = [write(point.value) for point in points]
    with _rows([point.label for point in points], figures, 24) as canvas:
        canvas.value_axis(ticks, axis, change)
        for row, point in enumerate(points):
            low, high = write(point.low), write(point.high)
            canvas.line([(point.low, row), (point.high, row)], COLOURS[0], 2)
            dot = canvas.dot((point.value, row), COLOURS[0], 8)
            canvas.explain(dot, f"{point.label}: {figures[row]} ({low} to {high})")
        svg = canvas.svg(title)
    return Chart(title, axis.label, [], svg)


def change_bars(
    title: str, changes: Sequence[tuple[str, float]], *, axis: Axis = PLAIN
) -> Chart | None:
    """Draw one bar per labelled change, to the right of zero or to the left of it.

    Args:
        changes: those that are not finite are left out.

    Returns:
        None if there is no change to draw.
    """
    changes = [(label, value) for label, value in changes if _is_drawable(value)]
    if not changes:
        return None
    values = [value for _, value in changes]
    ticks = _ticks(min(0.0, *values), max(0.0, *values), axis)
    figures = list(map(_writer(ticks, axis, True, more=1), values))
    with _rows([label for label, _ in changes], figures, 19) as canvas:
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
    points = [point for point in points if _is_drawable(*point[1:])]
    if not points:
        return None
    front = pareto_front([(a, b) for _, a, b in points])
    xs, ys = zip(*((a, b) for _, a, b in points), strict=True)
    x_ticks, y_ticks = _ticks(min(xs), max(xs), x), _ticks(min(ys), max(ys), y)
    write_x, write_y = _writer(x_ticks, x), _writer(y_ticks, y)
    exact_x, exact_y = _writer(x_ticks, x, more=1), _writer(y_ticks, y, more=1)
    left = 14 + _LETTER * max(map(len, map(write_y, y_ticks)))
    with _canvas(240, left, right=16, bottom=40) as canvas:
        canvas.set_ticks("x", x_ticks, list(map(write_x, x_ticks)))
        canvas.set_ticks("y", y_ticks, list(map(write_y, y_ticks)))
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
    lines = [(label, places) for label, places in lines if _is_drawable(*places)]
    if len(axes) < 2 or not lines:
        return None
    with _canvas(260, 40, right=40, bottom=44) as canvas:
        canvas.axes.set_xlim(0, len(axes) - 1)
        canvas.axes.set_ylim(0, _ABOVE)
        canvas.set_ticks("y", [], [])
        canvas.set_ticks("x", range(len(axes)), [""] * len(axes))
        for n, (name, (low, high)) in enumerate(zip(axes, ends, strict=True)):
            canvas.axes.axvline(n, 0, 1 / _ABOVE, color=GREY, linewidth=1, clip_on=False)
            for text, place, shift in ((name, 0, -34), (low, 0, -18), (high, 1, 5)):
                canvas.axes.annotate(
                    _shorten(text),
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


# --- ticks and figures ----------------------------------------------------------------------------

_SHARES = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def _is_drawable(*values: float) -> bool:
    return all(math.isfinite(value) and abs(value) < _LARGEST for value in values)


def _ticks(low: float, high: float, axis: Axis) -> list[float]:
    """Choose round values at equal distances, from at or below `low` to at or above `high`."""
    from matplotlib.ticker import MaxNLocator

    if high <= low:
        room = abs(low) * 0.1 or 1.0
        low, high = 0.0 if 0 <= low < room else low - room, high + room
    if axis.from_0_to_1:
        low, high = max(0.0, low), min(1.0, high)
    locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10])
    return [float(tick) for tick in locator.tick_values(low, high)]


def _whole_ticks(low: float, high: float) -> list[float]:
    """Choose whole numbers at equal distances from `low` to `high`."""
    from matplotlib.ticker import MaxNLocator

    locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True)
    return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]


def _writer(
    ticks: Sequence[float], axis: Axis, change: bool = False, *, more: int = 0
) -> Callable[[float], str]:
    """Return a function that writes values of an axis, with as many decimals as its ticks need.

    Args:
        change: whether values, except zero, have a sign.
        more: decimals beyond those of the ticks.
    """
    scaled = [tick * axis.factor for tick in ticks]
    exact = 1e-6 * max(map(abs, scaled), default=0.0)
    needed = (n for n in range(5) if all(abs(round(tick, n) - tick) <= exact for tick in scaled))
    decimals = next(needed, None)
    form = f",.{decimals + more}f" if decimals is not None and exact < 1 else f".{3 + more}g"

    def write(value: float) -> str:
        value = value * axis.factor + 0.0  # the sum turns -0 into 0
        text = f"{value:{'+' if change and value else ''}{form}}"
        return text + axis.suffix

    return write


def _shorten(label: str) -> str:
    """Put a label into one line, and leave out its middle if it is too long."""
    label = " ".join(label.split())
    if len(label) <= _LONGEST:
        return label
    return f"{label[: _LONGEST - 10]}…{label[-9:]}"


# --- drawing --------------------------------------------------------------------------------------


class _Canvas:
    """A figure with one pair of axes, and the tooltips of what is drawn there."""

    def __init__(self, figure: Figure, axes: Axes) -> None:
        self.figure, self.axes = figure, axes
        self._tooltips: dict[str, str] = {}

    def set_ticks(
        self, which: Literal["x", "y"], ticks: Sequence[float], labels: Sequence[str]
    ) -> None:
        """Put labels at places of an axis, as plain text."""
        axis = self.axes.xaxis if which == "x" else self.axes.yaxis
        axis.set_ticks(ticks, labels, fontsize=FONT_SIZE, parse_math=False)
        self.axes.grid(axis=which, color=GREY, alpha=0.25, linewidth=0.8)

    def value_axis(self, ticks: Sequence[float], axis: Axis, change: bool) -> None:
        """Make these ticks the horizontal axis; mark zero among changes."""
        self.set_ticks("x", ticks, list(map(_writer(ticks, axis, change), ticks)))
        self.axes.set_xlim(ticks[0], ticks[-1])
        if change:
            self.axes.axvline(0, color=GREY, linewidth=1.4)

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float) -> Artist:
        """Draw a line with round ends, not cut at the axes' edge."""
        xs, ys = zip(*points, strict=True)
        return self.axes.plot(
            xs, ys, color=colour, linewidth=width, solid_capstyle="round", clip_on=False
        )[0]

    def dot(self, point: tuple[float, float], colour: str, size: float) -> Artist:
        """Draw a dot, as a line without length: markers would be references."""
        return self.line([point, point], colour, size)

    def explain(self, artist: Artist, text: str) -> None:
        """Give a drawn artist a tooltip."""
        name = f"tooltip{len(self._tooltips)}"
        artist.set_gid(name)
        self._tooltips[name] = text

    def svg(self, title: str) -> str:
        """Return the drawing without declarations, metadata and ids, which only a file needs."""
        file = io.StringIO()
        self.figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
        root = ElementTree.fromstring(file.getvalue())
        for parent in root.iter():
            for child in list(parent):
                if child.tag.endswith(("metadata", "defs")):
                    parent.remove(child)
        for element in list(root.iter()):
            element.tag = element.tag.rpartition("}")[2]
            element.attrib.pop("clip-path", None)  # nothing lies outside
            tooltip = self._tooltips.get(element.attrib.pop("id", ""))
            if tooltip is not None:
                element.insert(0, _element("title", tooltip))
            style = element.attrib.get("style", "")
            if element.tag == "text":
                anchor = re.search("text-anchor: (middle|end)", style)
                del element.attrib["style"]
                element.set("text-anchor", anchor[1] if anchor else "start")
        height = float(root.attrib["viewBox"].split()[3])
        root.attrib.clear()
        root.attrib.update(
            {
                "viewBox": f"0 0 {WIDTH} {height:g}",
                "role": "img",
                "aria-label": title,
                "fill": "currentColor",
                "font-size": str(FONT_SIZE),
            }
        )
        return ElementTree.tostring(root, "unicode")


def _element(tag: str, text: str) -> ElementTree.Element:
    element = ElementTree.Element(tag)
    element.text = text
    return element


@contextlib.contextmanager
def _canvas(height: float, left: float, right: float, bottom: float) -> Iterator[_Canvas]:
    """Make a canvas of this height with room beside the axes, whatever the user's own settings."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    top = 10
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # on letters that matplotlib's font lacks: the page has its own
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.fonttype"] = "none"
        matplotlib.rcParams["svg.hashsalt"] = "forty2"
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        FigureCanvasSVG(figure)
        axes = figure.add_axes(
            (
                left / WIDTH,
                bottom / height,
                (WIDTH - left - right) / WIDTH,
                (height - bottom - top) / height,
            )
        )
        axes.tick_params(length=0, pad=6)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.spines["bottom"].set_color(GREY)
        axes.set_axisbelow(True)
        yield _Canvas(figure, axes)


@contextlib.contextmanager
def _rows(labels: Sequence[str], figures: Sequence[str], row: float) -> Iterator[_Canvas]:
    """Make a canvas of one row per label, the first at the top, with a figure at the end of each.

    Args:
        row: height of a row.
    """
    shown = [_shorten(label) for label in labels]
    left = 14 + _LETTER * max(map(len, shown))
    right = 14 + _LETTER * max(map(len, figures))
    with _canvas(36 + row * len(labels), left, right, bottom=26) as canvas:
        canvas.axes.set_ylim(len(labels) - 0.5, -0.5)
        canvas.axes.yaxis.set_ticks(range(len(labels)), shown, fontsize=FONT_SIZE, parse_math=False)
        for n, figure in enumerate(figures):
            canvas.axes.annotate(
                figure,
                (1, n),
                (8, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center_baseline",
                fontsize=FONT_SIZE,
                parse_math=False,
            )
        yield canvas
