"""A canvas for one chart: matplotlib's figure, which becomes an SVG that is part of a page.

matplotlib takes half a second to import: it is imported only where a chart is drawn.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

from forty2.report.axes import Axis, writer

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 400
"""Width of every chart in its own units, about one pixel each on a wide screen."""
FONT_SIZE = 12
GREY = "#808080"
_LETTER = 6.7
"""Generous mean width of a letter: the font is the page's."""
_LONGEST = 26
"""Most letters of a label that are drawn; the tooltip has all of them."""


class Canvas:
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
        self.set_ticks("x", ticks, list(map(writer(ticks, axis, change), ticks)))
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
def new_canvas(height: float, left: float, right: float, bottom: float) -> Iterator[Canvas]:
    """Make a canvas of this height with room beside the axes, whatever the user's own settings."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    top = 10
    with matplotlib.rc_context(), warnings.catch_warnings():
        # It warns of letters that its own font lacks, but the page has another.
        warnings.simplefilter("ignore")
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
        yield Canvas(figure, axes)


@contextlib.contextmanager
def rows_canvas(labels: Sequence[str], figures: Sequence[str], row: float) -> Iterator[Canvas]:
    """Make a canvas of one row per label, the first at the top, with a figure at the end of each.

    Args:
        row: height of a row.
    """
    shown = [shorten(label) for label in labels]
    height = 36 + row * len(labels)
    with new_canvas(height, room_for(shown), room_for(figures), bottom=26) as canvas:
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


def room_for(labels: Sequence[str]) -> float:
    """Return the width of the longest label with the space beside it."""
    return 14 + _LETTER * max(map(len, labels))


def shorten(label: str) -> str:
    """Put a label into one line, and leave out its middle if it is too long."""
    label = " ".join(label.split())
    if len(label) <= _LONGEST:
        return label
    return f"{label[: _LONGEST - 10]}…{label[-9:]}"
