"""Charts: safe to be put into a page, the same bytes each time, and readable axes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from forty2.report.axes import Axis, percent
from forty2.report.charts import (
    Chart,
    IntervalPoint,
    MapPoint,
    Point,
    change_bars,
    interval_chart,
    interval_line_chart,
    line_chart,
    map_chart,
    parallel_chart,
    pareto_front,
    trade_off_chart,
)

HOSTILE = "<script>alert(1)</script>&amp; \"' $x^2$ _name {0}"
POINTS = [Point("base", 0.31, 0.28, 0.34), Point(HOSTILE, 0.35, 0.32, 0.38)]


def lines(name: str = "training", values: tuple[float, ...] = (2.5, 1.0, 0.5)) -> Chart | None:
    return line_chart("Loss", {name: list(enumerate(values))}, y=Axis("nats"))


def texts(chart: Chart | None) -> list[str]:
    """The texts that are drawn, and not the tooltips."""
    assert chart is not None
    return [element.text or "" for element in ElementTree.fromstring(chart.svg).iter("text")]


CHARTS: dict[str, Callable[[], Chart | None]] = {
    "lines": lambda: lines(HOSTILE),
    "intervals": lambda: interval_chart(HOSTILE, POINTS),
    "changes": lambda: interval_chart("MC1", POINTS, change=True),
    "interval lines": lambda: interval_line_chart(
        HOSTILE,
        {HOSTILE: [IntervalPoint(0, 0, 0, 0), IntervalPoint(40, 0.1, -0.1, 0.2)]},
        x=Axis("steps"),
        y=Axis("points", 100.0),
        change=True,
    ),
    "bars": lambda: change_bars("MC2", [(HOSTILE, 0.1), ("Health", -0.05)]),
    "trade-off": lambda: trade_off_chart(
        HOSTILE, [(HOSTILE, 11.0, 0.4), ("c002", 12.0, 0.3)], x=Axis("perplexity"), y=Axis("MC2")
    ),
    "parallel": lambda: parallel_chart(
        HOSTILE, [HOSTILE, "MC2"], [(HOSTILE, (0, 1))], [("0.1", HOSTILE), ("0", "1")], best=HOSTILE
    ),
    "map": lambda: map_chart(
        HOSTILE, [HOSTILE], [MapPoint(n, n, 0, n > 0, HOSTILE) for n in (0.0, 1.0, math.nan)]
    ),
    "diagonal": lambda: line_chart(
        "Calibration", {HOSTILE: [(0.2, 0.3)]}, x=percent("x"), y=percent("y"), diagonal="ideal"
    ),
}


@pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS)
def test_a_drawing_has_text_and_paths_and_refers_to_nothing(
    draw: Callable[[], Chart | None],
) -> None:
    chart = draw()
    assert chart is not None
    elements = list(ElementTree.fromstring(chart.svg).iter())
    assert {element.tag for element in elements} <= {"svg", "g", "path", "text", "title"}
    attributes = {name for element in elements for name in element.attrib}
    assert not {"id", "href", "clip-path", "class"} & attributes
    assert "url(" not in chart.svg and "http" not in chart.svg


@pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS)
def test_two_drawings_of_the_same_are_the_same_bytes(draw: Callable[[], Chart | None]) -> None:
    assert draw() == draw()


def test_a_label_is_drawn_as_it_is_written() -> None:
    """Whatever it says: matplotlib would take $x$ for mathematics and hide _name."""
    for label in ("$x^2$", "_name", "<b>&lt;"):
        assert label in texts(interval_chart("MC1", [Point(label, 0.3, 0.2, 0.4)]))
        assert label in texts(change_bars("MC1", [(label, 0.3)]))


def test_a_long_label_is_shortened_and_its_tooltip_is_not() -> None:
    label = "a stage whose name says far more than fits beside a chart"
    chart = interval_chart("MC1", [Point(label, 0.3, 0.2, 0.4)])
    assert chart is not None
    assert "a stage whose na…e a chart" in texts(chart)
    assert f"<title>{label}: 0.300 (0.200 to 0.400)</title>" in chart.svg


def test_shares_go_from_0_to_100_percent() -> None:
    chart = line_chart("Accuracy", {"training": [(0, 0.62), (9, 0.66)]}, y=percent("of pairs"))
    assert {"0%", "20%", "40%", "60%", "80%", "100%"} <= set(texts(chart))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_no_axis_of_shares_leaves_0_to_100_percent(value: float) -> None:
    chart = interval_chart(
        "Leaks", [Point("base", value, value, value)], axis=percent("of prompts")
    )
    ticks = [float(text.rstrip("%")) for text in texts(chart) if text.endswith("%")]
    assert min(ticks) >= 0 and max(ticks) <= 100 and len(set(ticks)) > 2


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ((0.0798, 0.1203), ["0.07", "0.08", "0.09", "0.10", "0.11", "0.12", "0.13"]),
        ((1000.0, 1999.0), ["1,000", "1,200", "1,400", "1,600", "1,800", "2,000"]),
        ((-1.0, 1.0), ["-1.0", "-0.5", "0.0", "0.5", "1.0"]),
        ((2e-6, 4e-6), ["2e-06", "2.5e-06", "3e-06", "3.5e-06", "4e-06"]),
    ],
)
def test_ticks_are_round_numbers_that_hold_all_values(
    values: tuple[float, ...], wanted: list[str]
) -> None:
    drawn = texts(lines(values=values))
    assert [text for text in drawn if text not in ("0", "1", "step")] == wanted


def test_a_change_has_its_sign_and_none_has_none() -> None:
    drawn = texts(change_bars("MC2", [("up", 0.1), ("down", -0.1), ("same", -0.0)]))
    assert {"+0.10", "-0.10", "0.00"} <= set(drawn)


def test_values_that_are_not_finite_are_left_out() -> None:
    assert lines(values=(math.nan, math.inf)) is None
    assert interval_chart("MC1", [Point("base", math.nan, 0.0, 1.0)]) is None
    assert change_bars("MC2", [("Health", -math.inf)]) is None
    assert lines(values=(1.0, math.nan, 3.0, 1e300)) == line_chart(
        "Loss", {"training": [(0, 1.0), (2, 3.0)]}, y=Axis("nats")
    )


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("Loss", {}) is line_chart("Loss", {"training": []}) is None
    assert interval_chart("MC1", []) is change_bars("MC2", []) is None
    assert map_chart("Map", [], []) is None


def test_one_line_needs_no_legend_and_several_differ_in_colour() -> None:
    one, two = lines(), line_chart("Loss", {"a": [(0, 1.0)], "b": [(0, 2.0)]})
    assert one is not None and one.legend == []
    assert two is not None and [entry.name for entry in two.legend] == ["a", "b"]
    assert len({entry.colour for entry in two.legend}) == 2
    assert all(entry.colour in two.svg for entry in two.legend)


@pytest.mark.parametrize(("step", "drawn"), [(0, True), (2, True), (3, False)])
def test_a_marked_step_is_drawn_and_named_where_the_series_reach(step: int, drawn: bool) -> None:
    points = {"training": [(0.0, 2.5), (1.0, 1.0), (2.0, 0.5)]}
    plain = line_chart("Loss", points)
    chart = line_chart("Loss", points, mark=("adapter", step))
    assert plain is not None and chart is not None
    assert [entry.name for entry in chart.legend] == (["training", "adapter"] if drawn else [])
    assert (chart.svg != plain.svg) == drawn


def test_evaluations_have_a_dot_each_however_many_there_are() -> None:
    points = {"validation": [(float(n), float(n)) for n in range(50)]}
    plain, dotted = (line_chart("Loss", points, dotted=names) for names in ((), ("validation",)))
    assert plain is not None and dotted is not None
    assert dotted.svg.count("<path") - plain.svg.count("<path") == 50


def test_the_user_s_matplotlib_settings_are_neither_used_nor_changed() -> None:
    import matplotlib

    plain = lines()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 40, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert lines() == plain
        assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_only_where_a_chart_is_drawn() -> None:
    script = (
        "import sys, forty2.report.run, forty2.report.ablation\n"
        "assert not {'matplotlib', 'mlx'} & set(sys.modules)\n"
        "forty2.report.charts.line_chart('Loss', {'training': [(0, 1.0)]})\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'matplotlib' in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    """Lower x and higher y are better; two of the same place are both on it."""
    assert pareto_front([(1, 1), (2, 2), (2, 1), (3, 2), (1, 1)]) == [0, 1, 4]
    assert pareto_front([]) == []


def test_charts_of_a_sweep_leave_out_what_has_no_place() -> None:
    assert trade_off_chart("T", [("c001", math.nan, 1.0)], x=Axis("x"), y=Axis("y")) is None
    assert parallel_chart("T", ["a"], [("c001", (0.5,))], [("0", "1")], best=None) is None
    assert parallel_chart("T", ["a", "b"], [], [("0", "1")] * 2, best=None) is None
    chart = trade_off_chart(
        "T", [("c001", 1.0, 0.5), ("c002", 2.0, 0.4)], x=Axis("nats"), y=Axis("MC2")
    )
    assert chart is not None and chart.svg.count("<title>c00") == 2


def test_lines_with_intervals_say_each_value_and_name_each_series() -> None:
    points = [IntervalPoint(0, 0, 0, 0), IntervalPoint(40, 0.125, 0.075, 0.175)]
    bad = IntervalPoint(80, math.nan, 0, 1)
    chart = interval_line_chart(
        "Leaks",
        {"alone": [*points, bad], "then dpo": points[1:]},
        x=Axis("sft steps"),
        y=Axis("points", 100.0),
        change=True,
    )
    assert chart is not None
    titles = [e.text for e in ElementTree.fromstring(chart.svg).iter("title")]
    assert titles == [
        "alone, 0: 0.0 (0.0 to 0.0)",
        "alone, 40: +12.5 (+7.5 to +17.5)",
        "then dpo, 40: +12.5 (+7.5 to +17.5)",
    ]
    assert [entry.name for entry in chart.legend] == ["alone", "then dpo"]
    assert "sft steps" in texts(chart)
    assert interval_line_chart("Leaks", {"alone": [bad]}, x=Axis(), y=Axis()) is None
