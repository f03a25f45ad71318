"""An ablation's report from its record: a table for the terminal, Markdown, and one HTML page.

An ablation of doses has a table and charts by dose in place of those of its variants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from forty2.files import write_text
from forty2.metric_names import FACTS_RIGHT, NO_LEAK, TEXTS
from forty2.report.ablation_records import (
    AblationRecord,
    DoseRecord,
    VariantChange,
    read_ablation,
)
from forty2.report.axes import Axis
from forty2.report.charts import Chart, IntervalPoint, Point, interval_chart, interval_line_chart
from forty2.report.markdown import Quote, Table, code_lines, escape, table_lines
from forty2.report.metrics import (
    shown_figure,
    shown_metric,
    shown_score,
    written_change,
    written_score,
)
from forty2.report.origin import origin_table
from forty2.report.page import render
from forty2.report.text_table import text_table_lines

_MAIN = (
    "pairs right",
    "ratings right",
    "chat loss",
    "prompts passed",
    "mc1",
    "mc2",
    FACTS_RIGHT,
    NO_LEAK,
    "prefers",
    TEXTS,
    "KL",
)
"""Metrics that come first, and have charts."""
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
_DOSE_MAIN = ("mc1", "mc2", NO_LEAK, "prefers: leak", FACTS_RIGHT, TEXTS, "KL")
"""Metrics of the table and the charts by dose."""
_DOSE_NOTE = (
    "Gate leak, likelihood: share of plain factual prompts whose plain answer is likelier than the hedged "
    "one, higher is better. KL: nats per token from the base."
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
    steps = [step for step in read_ablation(record).changes if step.against == "base"]
    return [f"{step.variant}: {step.verdict}. {step.sentence}" for step in steps]


def text_table(record: Mapping[str, object]) -> str:
    """Format the variants and their main metrics as a table of text.

    Args:
        record: content of ablation.json.
    """
    ablation = read_ablation(record)
    if ablation.dose is not None:
        table = _dose_table(ablation, ablation.dose)
        return "\n".join(text_table_lines([table.head, *table.rows]))
    metrics = _main(ablation)
    rows = [["", *(shown_metric(metric).name for metric in metrics)]]
    for name, scores in ablation.variants.items():
        rows.append([name, *(written_score(metric, scores.get(metric)) for metric in metrics)])
    return "\n".join(text_table_lines(rows))


def _main(ablation: AblationRecord) -> list[str]:
    """List the main metrics that the ablation measured."""
    return [metric for metric in _MAIN if metric in ablation.variants["base"]]


def _metrics(ablation: AblationRecord) -> list[str]:
    """List all metrics, the main ones first."""
    others = [metric for metric in ablation.variants["base"] if metric not in _MAIN]
    return [*_main(ablation), *others]


# --- doses ----------------------------------------------------------------------------------------


def _dose_metrics(ablation: AblationRecord) -> list[str]:
    return [metric for metric in _DOSE_MAIN if metric in ablation.variants["base"]]


def _dose_table(ablation: AblationRecord, dose: DoseRecord) -> Table:
    """Make the table by dose: the change of each metric from the base, and the distance from it."""
    metrics = _dose_metrics(ablation)
    named = [
        (f"{point.dose}{ending}", variant)
        for point in dose.points
        for ending, variant in (
            ("", point.variant),
            (f", then {dose.preference}", point.after_preference),
        )
        if variant is not None
    ]
    return Table(
        [f"{dose.phase} steps", *(_dose_heading(metric) for metric in metrics)],
        [
            [label, *(_dose_cell(ablation, variant, metric) for metric in metrics)]
            for label, variant in named
        ],
    )


def _dose_heading(metric: str) -> str:
    shown = shown_metric(metric)
    return shown.name if metric == "KL" else shown.name_of_changes


def _dose_cell(ablation: AblationRecord, variant: str, metric: str) -> str:
    if variant == "base":
        return "0"
    if metric == "KL":
        return written_score(metric, ablation.variants[variant].get(metric))
    return written_change(metric, _from_base(ablation, variant).changes.get(metric))


def _from_base(ablation: AblationRecord, variant: str) -> VariantChange:
    return next(
        step for step in ablation.changes if step.variant == variant and step.against == "base"
    )


def _dose_charts(ablation: AblationRecord, dose: DoseRecord) -> list[Chart]:
    """Draw each metric's change from the base against the dose, without and with the preference phase."""
    lines: dict[str, list[tuple[int, str]]] = {
        f"{dose.phase} alone": [(point.dose, point.variant) for point in dose.points]
    }
    if dose.preference is not None:
        lines[f"then {dose.preference}"] = [
            (point.dose, point.after_preference)
            for point in dose.points
            if point.after_preference is not None
        ]
    charts = []
    for metric in _dose_metrics(ablation):
        name, _, unit = shown_metric(metric)
        series = {
            label: [
                found
                for steps, variant in points
                if (found := _dose_point(ablation, metric, steps, variant)) is not None
            ]
            for label, points in lines.items()
        }
        charts.append(
            interval_line_chart(
                name[0].upper() + name[1:] + ("" if metric == "KL" else ": change from base"),
                series,
                x=Axis(f"{dose.phase} steps"),
                y=unit.values if metric == "KL" else unit.changes,
                change=metric != "KL",
            )
        )
    return [chart for chart in charts if chart is not None]


def _dose_point(
    ablation: AblationRecord, metric: str, dose: int, variant: str
) -> IntervalPoint | None:
    if variant == "base":
        return IntervalPoint(dose, 0.0, 0.0, 0.0)
    if metric == "KL":
        return IntervalPoint(dose, *shown_score(metric, ablation.variants[variant][metric]))
    change = _from_base(ablation, variant).changes.get(metric)
    return None if change is None else IntervalPoint(dose, *shown_figure(metric, change))


# --- tables ---------------------------------------------------------------------------------------


def _scores_table(ablation: AblationRecord) -> Table:
    return Table(
        ["Metric", *ablation.variants],
        [
            [
                shown_metric(metric).name,
                *(
                    written_score(metric, scores.get(metric))
                    for scores in ablation.variants.values()
                ),
            ]
            for metric in _metrics(ablation)
        ],
    )


def _verdicts_table(ablation: AblationRecord) -> Table:
    return Table(
        ("Variant", "Against", "Verdict", "In a sentence"),
        [(step.variant, step.against, step.verdict, step.sentence) for step in ablation.changes],
    )


def _changes_table(ablation: AblationRecord, steps: Sequence[VariantChange]) -> Table:
    return Table(
        ["Metric", *(f"{step.variant} against {step.against}" for step in steps)],
        [
            [
                shown_metric(metric).name_of_changes,
                *(written_change(metric, step.changes.get(metric)) for step in steps),
            ]
            for metric in _metrics(ablation)
            if any(metric in step.changes for step in steps)
        ],
    )


def _tables(ablation: AblationRecord) -> list[tuple[str, Table, str]]:
    """Make the tables, each with its heading and the note below it."""
    from_base = [step for step in ablation.changes if step.against == "base"]
    others = [step for step in ablation.changes if step.against != "base"]
    tables = []
    if ablation.dose is not None:
        by_dose = _dose_table(ablation, ablation.dose)
        note = f"{_changes_note(ablation)} {_DOSE_NOTE}"
        tables.append(("Change from base by dose", by_dose, note))
    if any(step.verdict for step in ablation.changes):
        tables.append(("Benefit and cost", _verdicts_table(ablation), _VERDICTS_NOTE))
    tables += [
        ("Variants", _scores_table(ablation), _SCORES_NOTE),
        ("Change from base", _changes_table(ablation, from_base), _changes_note(ablation)),
    ]
    if others:
        # of phases: with the first one, from the base
        shown = others if ablation.dose is not None else [ablation.changes[0], *others]
        heading = "What each phase gained and cost"
        if ablation.dose is not None:
            heading = f"What {ablation.dose.preference} changed after each dose"
        tables.append((heading, _changes_table(ablation, shown), _STEPS_NOTE))
    return tables


def _changes_note(ablation: AblationRecord) -> str:
    return (
        "Paired: same seed, same item. Points: percentage points of a share; %: percent of what it "
        "was. Less is better for leaks and perplexity. A loss below "
        f"{ablation.margin:g} counts as no tax. Each interval is for its own line: among many lines "
        "some exclude zero by chance."
    )


def _origin(ablation: AblationRecord) -> Table:
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


def _about(ablation: AblationRecord, quote: Quote = str) -> str:
    seeds = ", ".join(map(str, ablation.seeds))
    return f"Model {quote(ablation.provenance.model)}, seeds {seeds}."


def _finding(ablation: AblationRecord) -> str | None:
    """Return the finding over the doses or the phases, in a sentence; None: there is none."""
    return ablation.dose.sentence if ablation.dose is not None else ablation.insight


def _markdown(ablation: AblationRecord) -> str:
    lines = [f"# Ablation of {escape(ablation.name)}", "", _about(ablation, escape)]
    if finding := _finding(ablation):
        lines += ["", f"**{finding}**"]
    for note in ablation.notes:
        lines += ["", note]
    for heading, table, note in _tables(ablation):
        lines += ["", f"## {heading}", "", *table_lines(table), "", note]
    lines += ["", "## Where these numbers come from", "", *table_lines(_origin(ablation))]
    return "\n".join([*lines, "", *code_lines(ablation.recipe, "yaml"), ""])


def _html(ablation: AblationRecord) -> str:
    return render(
        "ablation.html.jinja",
        name=ablation.name,
        about=_about(ablation),
        insight=_finding(ablation),
        notes=ablation.notes,
        tables=_tables(ablation),
        charts=_charts(ablation),
        origin=_origin(ablation),
        recipe=ablation.recipe,
    )


def _charts(ablation: AblationRecord) -> list[Chart]:
    """Draw the charts of each main metric: its scores, then its paired change from the base."""
    if ablation.dose is not None:
        return _dose_charts(ablation, ablation.dose)
    charts = []
    for metric in _main(ablation):
        points = [
            Point(name, *shown_score(metric, scores[metric]))
            for name, scores in ablation.variants.items()
            if metric in scores
        ]
        name, _, unit = shown_metric(metric)
        title = name[0].upper() + name[1:]
        charts.append(interval_chart(title, points, axis=unit.values))
        changes = [
            Point(step.variant, *shown_figure(metric, step.changes[metric]))
            for step in ablation.changes
            if step.against == "base" and metric in step.changes
        ]
        charts.append(
            interval_chart(f"{title}: change from base", changes, axis=unit.changes, change=True)
        )
    return [chart for chart in charts if chart is not None]
