"""An ablation's report from its record: a table for the terminal, Markdown, and one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from forty2.files import write_text
from forty2.report.ablation_records import Ablation, VariantChange, read_ablation
from forty2.report.axes import Axis, percent
from forty2.report.charts import Chart, Point, interval_chart
from forty2.report.markdown import Quote, Table, code_lines, escape, table_lines
from forty2.report.metrics import (
    SCORES,
    Figure,
    Score,
    metric_name,
    shown_score,
    written_score,
)
from forty2.report.origin import origin_table
from forty2.report.page import render
from forty2.report.run_types import Change
from forty2.report.text_table import text_table_lines

_MAIN = (
    "pairs right",
    "ratings right",
    "chat loss",
    "prompts passed",
    "mc1",
    "mc2",
    "right",
    "no leak",
    "prefers",
    "log p of texts",
    "KL",
)
"""Metrics that come first, and have charts."""
_NATS = ("chat loss", "pair margin")
_CHANGE_UNITS = {
    **dict.fromkeys(SCORES, ""),
    **dict.fromkeys(_NATS, " (nats)"),
    "log p of texts": " (%)",
}
"""Units after a metric's name in tables of changes; the other metrics are shares, in points."""
_SCORES_NOTE = (
    "Means over seeds, with 95% intervals over seeds and items. Held-out rows (pairs, ratings, chats, "
    "prompts): of a phase alone, those of that phase, and only rows that every seed held out; the base "
    "has 50% of pairs and ratings. MC1 and MC2: TruthfulQA scores from 0 to 1, higher is better. Facts "
    "right: share of plain factual prompts. Leaks: share of plain factual prompts answered with needless hedging, "
    "lower is better. Prefers: share of held-out prompts whose good answer is likelier than the bad "
    "one; answers: share answered as the gate asks. Perplexity: on neutral texts, lower is better. "
    "KL from base: nats per token, neither good nor bad."
)
_VERDICTS_NOTE = (
    "Over both halves the weakest verdict counts: a gain never hides a cost. Cost: perplexity of neutral "
    "text, plain facts answered right, and each benchmark beside the one that shows the benefit, by the "
    "margins in benchmark.cost."
)
_STEPS_NOTE = "Each variant against one that lacks a phase."


def write_ablation(record: Mapping[str, object], out: Path) -> Path:
    """Write ablation.md and ablation.html into the ablation's folder.

    Args:
        record: content of ablation.json.

    Returns:
        The HTML file.
    """
    ablation = read_ablation(record)
    write_text(out / "ablation.md", _markdown(ablation))
    page = out / "ablation.html"
    write_text(page, _html(ablation))
    return page


def verdict_lines(record: Mapping[str, object]) -> list[str]:
    """Say in a sentence each what the variants gained and cost against the base.

    Args:
        record: content of ablation.json.
    """
    changes = [one for one in read_ablation(record).changes if one.against == "base"]
    return [f"{one.variant}: {one.verdict}. {one.sentence}" for one in changes]


def text_table(record: Mapping[str, object]) -> str:
    """Format the variants and their main metrics as a table of text.

    Args:
        record: content of ablation.json.
    """
    ablation = read_ablation(record)
    metrics = _main(ablation)
    rows = [["", *map(metric_name, metrics)]]
    for name, scores in ablation.variants.items():
        rows.append([name, *(_score(metric, scores.get(metric)) for metric in metrics)])
    return "\n".join(text_table_lines(rows))


# --- figures --------------------------------------------------------------------------------------


def shown_change(metric: str, change: Change) -> Figure:
    """Return the figure to show for a change; a change of perplexity is relative."""
    value, low, high = change.difference, change.low, change.high
    if metric == "no leak":
        return Figure(0.0 - value, 0.0 - high, 0.0 - low)
    if metric == "log p of texts":
        return Figure(*(math.expm1(-x) for x in (value, high, low)))
    return Figure(value, low, high)


def _score(metric: str, score: Score | None) -> str:
    return "–" if score is None else written_score(metric, score)


def _change(metric: str, change: Change | None) -> str:
    if change is None:
        return "–"
    factor, form = (1, "+.3f") if metric in (*SCORES, *_NATS) else (100, "+.1f")
    value, low, high = (format(factor * x, form) for x in shown_change(metric, change))
    return f"{value} ({low} to {high}), {change.verdict}"


def _main(ablation: Ablation) -> list[str]:
    """List the main metrics that the ablation measured."""
    return [metric for metric in _MAIN if metric in ablation.variants["base"]]


def _metrics(ablation: Ablation) -> list[str]:
    """List all metrics, the main ones first."""
    others = [metric for metric in ablation.variants["base"] if metric not in _MAIN]
    return [*_main(ablation), *others]


# --- tables ---------------------------------------------------------------------------------------


def _scores_table(ablation: Ablation) -> Table:
    return Table(
        ["Metric", *ablation.variants],
        [
            [
                metric_name(metric),
                *(_score(metric, scores.get(metric)) for scores in ablation.variants.values()),
            ]
            for metric in _metrics(ablation)
        ],
    )


def _verdicts_table(ablation: Ablation) -> Table:
    return Table(
        ("Variant", "Against", "Verdict", "In a sentence"),
        [(one.variant, one.against, one.verdict, one.sentence) for one in ablation.changes],
    )


def _changes_table(ablation: Ablation, chosen: Sequence[VariantChange]) -> Table:
    return Table(
        ["Metric", *(f"{one.variant} against {one.against}" for one in chosen)],
        [
            [
                metric_name(metric) + _CHANGE_UNITS.get(metric, " (points)"),
                *(_change(metric, one.changes.get(metric)) for one in chosen),
            ]
            for metric in _metrics(ablation)
            if any(metric in one.changes for one in chosen)
        ],
    )


def _tables(ablation: Ablation) -> list[tuple[str, Table, str]]:
    """Make the tables, each with its heading and the note below it."""
    from_base = [one for one in ablation.changes if one.against == "base"]
    others = [one for one in ablation.changes if one.against != "base"]
    tables = []
    if any(one.verdict for one in ablation.changes):
        tables.append(("Benefit and cost", _verdicts_table(ablation), _VERDICTS_NOTE))
    tables += [
        ("Variants", _scores_table(ablation), _SCORES_NOTE),
        ("Change from base", _changes_table(ablation, from_base), _changes_note(ablation)),
    ]
    if others:
        first = ablation.changes[0]  # the first phase, from the base
        steps = _changes_table(ablation, [first, *others])
        tables.append(("What each phase gained and cost", steps, _STEPS_NOTE))
    return tables


def _changes_note(ablation: Ablation) -> str:
    return (
        "Paired: same seed, same item. Points: percentage points of a share; %: percent of what it "
        "was. Less is better for leaks and perplexity. A loss below "
        f"{ablation.margin:g} counts as no tax. Each interval is for its own line: among many lines "
        "some exclude zero by chance."
    )


def _origin(ablation: Ablation) -> Table:
    questions, asked = ablation.questions, []
    if questions is not None:
        drawn = "" if questions.drawn_with is None else f", drawn with seed {questions.drawn_with}"
        asked = [
            ("questions", questions.name),
            ("questions, number", f"{questions.n}{drawn}"),
            ("questions, sha256", questions.sha256),
        ]
    files = [("scores of every item", "ablation.json"), ("the runs", "seedN")]
    return origin_table(ablation.provenance, [*asked, *files])


# --- the two documents ----------------------------------------------------------------------------


def _about(ablation: Ablation, quote: Quote = str) -> str:
    seeds = ", ".join(map(str, ablation.seeds))
    return f"Model {quote(ablation.provenance.model)}, seeds {seeds}."


def _markdown(ablation: Ablation) -> str:
    lines = [f"# Ablation of {escape(ablation.name)}", "", _about(ablation, escape)]
    if ablation.insight:
        lines += ["", f"**{ablation.insight}**"]
    for note in ablation.notes:
        lines += ["", note]
    for heading, table, note in _tables(ablation):
        lines += ["", f"## {heading}", "", *table_lines(table), "", note]
    lines += ["", "## Where these numbers come from", "", *table_lines(_origin(ablation))]
    return "\n".join([*lines, "", *code_lines(ablation.recipe, "yaml"), ""])


def _html(ablation: Ablation) -> str:
    return render(
        "ablation.html.jinja",
        name=ablation.name,
        about=_about(ablation),
        insight=ablation.insight,
        notes=ablation.notes,
        tables=_tables(ablation),
        charts=_charts(ablation),
        origin=_origin(ablation),
        recipe=ablation.recipe,
    )


def _charts(ablation: Ablation) -> list[Chart]:
    """Draw the charts of each main metric: its scores, then its paired change from the base."""
    charts = []
    for metric in _main(ablation):
        points = [
            Point(name, *shown_score(metric, scores[metric]))
            for name, scores in ablation.variants.items()
            if metric in scores
        ]
        value, change = _axes(metric)
        title = metric_name(metric)[0].upper() + metric_name(metric)[1:]
        charts.append(interval_chart(title, points, axis=value))
        changes = [
            Point(one.variant, *shown_change(metric, one.changes[metric]))
            for one in ablation.changes
            if one.against == "base" and metric in one.changes
        ]
        charts.append(
            interval_chart(f"{title}: change from base", changes, axis=change, change=True)
        )
    return [chart for chart in charts if chart is not None]


def _axes(metric: str) -> tuple[Axis, Axis]:
    """Return the axes of a main metric's scores and of its changes."""
    interval = "with 95% interval"
    if metric in SCORES:
        return Axis(f"score, {interval}", from_0_to_1=True), Axis(f"paired, {interval}")
    if metric in _NATS:
        nats = Axis(f"nats a token, {interval}")
        return nats, Axis(f"paired, nats a token, {interval}")
    if metric == "log p of texts":
        relative = Axis(f"paired, percent of what it was, {interval}", 100.0, "%")
        return Axis(f"on neutral texts, {interval}"), relative
    if metric == "KL":
        return Axis(f"nats per token, {interval}"), Axis(f"nats per token, {interval}")
    points = Axis(f"paired, percentage points, {interval}", 100.0)
    return percent(f"share of prompts, {interval}"), points
