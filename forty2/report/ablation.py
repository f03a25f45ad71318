"""An ablation's report, from its record: a table for the terminal, Markdown, and one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment

from forty2.files import write_text
from forty2.report import Quote, _fence, _md, _md_row, _seen
from forty2.report.charts import Point, interval_chart

_MAIN = ("mc1", "mc2", "no leak", "prefers", "log p of texts", "KL")
_NAMES = {
    "mc1": "MC1",
    "mc2": "MC2",
    "mc3": "MC3",
    "no leak": "leaks",
    "log p of texts": "perplexity",
    "KL": "KL from base",
}
_NOTE = (
    "Means over seeds, with 95% intervals over seeds and items. Leaks: share of plain factual prompts "
    "answered with needless hedging. Prefers: share of held-out prompts whose good answer is likelier "
    "than the bad one; answers: share answered as the gate asks. Perplexity: on neutral texts, lower "
    "is better. KL from base: nats a token, neither good nor bad."
)


def _changes_note(record: Mapping[str, Any]) -> str:
    """What stands under the table of changes."""
    return (
        "Paired: same seed, same item. Shares change in points, perplexity in percent of what it was; "
        "of leaks and perplexity, less is better. "
        f"A loss below {record['margin']:g} counts as no tax. Intervals are each line's own: among "
        "many lines some exclude zero by chance."
    )


def write_ablation(record: Mapping[str, Any], out: Path) -> Path:
    """Write OUT/ablation.md and OUT/ablation.html.

    Returns:
        The HTML file.
    """
    seen = _seen({key: value for key, value in record.items() if key != "items"})
    write_text(out / "ablation.md", _markdown(seen))
    html = out / "ablation.html"
    write_text(html, _html(seen))
    return html


def text_table(record: Mapping[str, Any]) -> str:
    """Variants and their main figures as text."""
    metrics = _main(record)
    width = max(map(len, record["variants"])) + 2
    head = f"{'':<{width}}" + "".join(f"{_name(metric):>26}" for metric in metrics)
    lines = [head, "-" * len(head)]
    for name, scores in record["variants"].items():
        lines.append(
            f"{name:<{width}}" + "".join(f"{_score(metric, scores):>26}" for metric in metrics)
        )
    return "\n".join(lines)


class _Shown(NamedTuple):
    """A figure as a reader knows it: leaks and perplexity, where the record has what is better."""

    value: float
    low: float
    high: float


def _shown(metric: str, one: Mapping[str, Any]) -> _Shown:
    value, low, high = one["value"], one["low"], one["high"]
    if metric == "no leak":
        return _Shown(1 - value, 1 - high, 1 - low)
    if metric == "log p of texts":
        return _Shown(math.exp(-value), math.exp(-high), math.exp(-low))
    return _Shown(value, low, high)


def _shown_change(metric: str, one: Mapping[str, Any]) -> _Shown:
    value, low, high = one["difference"], one["low"], one["high"]
    if metric == "no leak":
        return _Shown(0.0 - value, 0.0 - high, 0.0 - low)
    if metric == "log p of texts":
        return _Shown(*(math.expm1(-x) for x in (value, high, low)))
    return _Shown(value, low, high)


def _name(metric: str) -> str:
    return _NAMES.get(metric, metric)


def _format(metric: str) -> str:
    return {"log p of texts": ".2f", "KL": ".2g", "mc1": ".3f", "mc2": ".3f", "mc3": ".3f"}.get(
        metric, ".1%"
    )


def _score(metric: str, scores: Mapping[str, Any]) -> str:
    how = _format(metric)
    value, low, high = (format(x, how) for x in _shown(metric, scores[metric]))
    return f"{value} ({low} to {high})"


def _change(metric: str, changes: Mapping[str, Any]) -> str:
    how = "+.3f" if metric.startswith("mc") else "+.1%"
    value, low, high = (format(x, how) for x in _shown_change(metric, changes[metric]))
    return f"{value} ({low} to {high}) {changes[metric]['verdict']}"


def _metrics(record: Mapping[str, Any]) -> list[str]:
    """All metrics, the main ones first."""
    there = list(record["variants"]["base"])
    return [*_main(record), *(metric for metric in there if metric not in _MAIN)]


def _main(record: Mapping[str, Any]) -> list[str]:
    return [metric for metric in _MAIN if metric in record["variants"]["base"]]


Table = tuple[list[str], list[list[str]]]
"""A head, and rows that begin with a metric's name."""


def _scores_table(record: Mapping[str, Any]) -> Table:
    rows = [
        [_name(metric), *(_score(metric, scores) for scores in record["variants"].values())]
        for metric in _metrics(record)
    ]
    return ["", *record["variants"]], rows


def _changes_table(record: Mapping[str, Any], chosen: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [_name(metric), *(_change(metric, one["metrics"]) for one in chosen)]
        for metric in _metrics(record)
        if metric in record["changes"][0]["metrics"]
    ]
    return ["", *(f"{one['variant']} against {one['against']}" for one in chosen)], rows


def _tables(record: Mapping[str, Any]) -> dict[str, Table]:
    """By heading."""
    from_base = [one for one in record["changes"] if one["against"] == "base"]
    others = [one for one in record["changes"] if one["against"] != "base"]
    tables = {
        "Variants": _scores_table(record),
        "Change from base": _changes_table(record, from_base),
    }
    if others:
        first = record["changes"][0]  # the first phase, from the base
        tables["What each phase bought and cost"] = _changes_table(record, [first, *others])
    return tables


def _questions(record: Mapping[str, Any], quote: Quote = str) -> str:
    asked = record["questions"]
    drawn = f", drawn with seed {asked['drawn_with']:d}" if "drawn_with" in asked else ""
    return (
        f"{quote(asked['name'])}, {asked['n']:d} questions{drawn}, sha256 {quote(asked['sha256'])}"
    )


def _markdown(record: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, record["seeds"]))
    lines = [
        f"# Ablation of {_md(record['name'])}",
        "",
        f"Model {_md(record['run']['model'])}, seeds {seeds}.",
    ]
    if record["insight"]:
        lines += ["", f"**{record['insight']['sentence']}**"]
    for note in record["notes"]:
        lines += ["", note]
    for heading, (head, rows) in _tables(record).items():
        lines += [
            "",
            f"## {heading}",
            "",
            _md_row([_md(cell) for cell in head]),
            _md_row(["---"] * len(head)),
        ]
        lines += [_md_row(row) for row in rows]
    recipe = record["recipe"].rstrip()
    fence = _fence(recipe, 3)
    versions = ", ".join(f"{_md(k)} {_md(v)}" for k, v in record["run"]["versions"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{_NOTE} {_changes_note(record)}",
            "",
            "## What it takes to believe it",
            "",
            "- ablation.json holds every item's score; seedN/ the runs",
            f"- {versions}",
            f"- model weights sha256 {_md(record['run']['model_sha256'])}",
            f"- {_questions(record, _md)}",
            "",
            f"{fence}yaml",
            recipe,
            fence,
            "",
        ]
    )


def _charts(record: Mapping[str, Any]) -> list[str]:
    """Each main metric of all variants, and beside it its paired change from the base."""
    charts = []
    for metric in _main(record):
        points = [
            Point(name, *_shown(metric, scores[metric]))
            for name, scores in record["variants"].items()
        ]
        charts.append(interval_chart(f"{_name(metric)} with 95% interval", points))
        changes = [
            Point(one["variant"], *_shown_change(metric, one["metrics"][metric]))
            for one in record["changes"]
            if one["against"] == "base" and metric in one["metrics"]
        ]
        title = f"{_name(metric)}: paired change from base"
        charts.append(interval_chart(title, changes, zero=True))
    return [svg for svg in charts if svg]


def _html(record: Mapping[str, Any]) -> str:
    source = (resources.files(__package__) / "ablation.html.jinja").read_text("utf-8")
    template = Environment(autoescape=True).from_string(source)
    return template.render(
        record=record,
        tables=_tables(record),
        charts=_charts(record),
        note=_NOTE,
        changes_note=_changes_note(record),
        questions=_questions(record),
    )
