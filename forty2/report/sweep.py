"""A sweep's report from its record: a table for the terminal, Markdown, and one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from forty2.files import JsonObject, write_text
from forty2.metric_names import NO_LEAK, OPPOSITES, TEXTS
from forty2.recipe.differences import on_one_line
from forty2.report.axes import Axis
from forty2.report.charts import Chart, parallel_chart, trade_off_chart
from forty2.report.json_records import visible
from forty2.report.markdown import Quote, Table, code_lines, escape, table_lines
from forty2.report.metrics import Score, shown_metric, shown_score, written_score
from forty2.report.origin import origin_table
from forty2.report.page import render
from forty2.report.records import read_provenance
from forty2.report.text_table import text_table_lines
from forty2.report.units import duration

_MAIN = ("mc2", "pairs right", "pair margin", "ratings right", NO_LEAK, TEXTS, "KL")
"""Metrics that the terminal's table shows, after the one that is judged by."""
_ALIGNMENT = ("mc2", "pair margin")
_FLUENCY = (TEXTS, "KL")
_NOTE = (
    "Means over seeds, with 95% intervals over seeds and items; without one where a configuration has "
    "one seed. Of sections only what differs is shown. Cost: time at work, of all seeds, without work that "
    "configurations share."
)
_DIFFERENCES_NOTE = (
    "Paired: same seed, same item, positive where the best is better. Each interval is for its own "
    "line. The best was chosen for its score: these intervals are optimistic, and those of a "
    "confirmation are not."
)
_CHARTS_NOTE = (
    "Up and to the left is better: the line joins configurations that none beats in both."
)


def write_sweep(record: Mapping[str, object], out: Path) -> Path:
    """Write sweep.md and sweep.html into the sweep's folder.

    Args:
        record: content of results.json.

    Returns:
        The HTML file.
    """
    shown = _shown(record)
    write_text(out / "sweep.md", _markdown(shown))
    page = out / "sweep.html"
    write_text(page, _html(shown))
    return page


def text_table(record: Mapping[str, object]) -> str:
    """Format the configurations with their settings and main metrics as a table of text.

    Args:
        record: content of results.json.
    """
    shown = _shown(record)
    metrics = [name for name in _metrics(shown) if name in (shown["metric"]["metric"], *_MAIN)]
    table = _scores_table(shown, metrics)
    return "\n".join(text_table_lines([table.head, *table.rows]))


def _shown(record: Mapping[str, object]) -> JsonObject:
    shown: JsonObject = visible({key: record[key] for key in record if key != "items"})
    return shown


# --- tables ---------------------------------------------------------------------------------------


def _metrics(record: JsonObject) -> list[str]:
    """List all metrics that were measured, the judged one and the main ones first."""
    names = dict.fromkeys(
        name for configuration in record["configurations"] for name in configuration["scores"]
    )
    first = [record["metric"]["metric"], *_MAIN]
    return [*(n for n in dict.fromkeys(first) if n in names), *(n for n in names if n not in first)]


def _scores_table(record: JsonObject, metrics: Sequence[str]) -> Table:
    parameters = record["parameters"]
    rows = []
    if record["base"]:
        cells = [_mean(metric, record["base"].get(metric)) for metric in metrics]
        rows.append(["base", *["–"] * len(parameters), *cells, "–", "–"])
    columns = [_differing(_column(record["configurations"], key)) for key in parameters]
    for n, configuration in enumerate(record["configurations"]):
        settings = [_value(column[n]) for column in columns]
        scores = [_score(metric, configuration["scores"].get(metric)) for metric in metrics]
        cost = duration(configuration["seconds"]) if configuration["seconds"] else "–"
        rows.append([configuration["name"], *settings, *scores, cost, configuration["state"]])
    names = [shown_metric(metric).name for metric in metrics]
    head = ["", *map(_short, parameters), *names, "cost", "state"]
    return Table(head, rows)


def _short(key: str) -> str:
    return key.removeprefix("phases.")


def _column(configurations: Sequence[JsonObject], key: str) -> list[object]:
    """Return the value of one setting in each configuration."""
    return [configuration["settings"].get(key) for configuration in configurations]


def _differing(values: Sequence[object]) -> list[object]:
    """Leave out of sections what all of them have in common: only what differs tells them apart."""
    if len(values) < 2 or not all(isinstance(value, Mapping) for value in values):
        return [*values]
    sections = [value for value in values if isinstance(value, Mapping)]
    first = sections[0]
    shared = {key for key in first if all(key in s and s[key] == first[key] for s in sections)}
    return [{key: s[key] for key in s if key not in shared} for s in sections]


def _value(value: object) -> str:
    if value == {}:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return on_one_line(value)


def _score(metric: str, score: Mapping[str, float | None] | None) -> str:
    if score is None:
        return "–"
    value, low, high = (
        math.nan if score[k] is None else score[k] for k in ("value", "low", "high")
    )
    return written_score(metric, Score(float(value or 0), float(low or 0), float(high or 0)))


def _mean(metric: str, value: float | None) -> str:
    return "–" if value is None else written_score(metric, Score(value, math.nan, math.nan))


def _differences_table(record: JsonObject) -> Table:
    rows = [
        [
            name,
            *(f"{difference[key]:+.4f}" for key in ("value", "low", "high")),
            str(difference["n"]),
        ]
        for name, difference in record["against"].items()
    ]
    metric = record["metric"]["metric"]
    name = metric if metric in OPPOSITES else shown_metric(metric).name
    return Table([f"{record['best']} against", name, "from", "to", "items"], rows)


def _tables(record: JsonObject) -> list[tuple[str, Table, str]]:
    """Make the tables, each with its heading and the note below it."""
    tables = [("Configurations", _scores_table(record, _metrics(record)), _NOTE)]
    if record["against"]:
        tables.append(
            ("The best against the others", _differences_table(record), _DIFFERENCES_NOTE)
        )
    confirmed = record["confirmed"]
    if confirmed:
        scores = confirmed["scores"]
        metrics = [
            m for m in _metrics(record) if all(m in by_metric for by_metric in scores.values())
        ]
        rows = [
            [
                shown_metric(m).name,
                *(_score(m, by_metric[m]) for by_metric in scores.values()),
            ]
            for m in metrics
        ]
        seeds = ", ".join(map(str, confirmed["seeds"]))
        note = f"Fresh seeds {seeds}; means with 95% intervals over seeds and items."
        tables.append(("Confirmation", Table(["Metric", *scores], rows), note))
    return tables


def confirmation_lines(record: Mapping[str, object]) -> list[str]:
    """Say what a confirmation found; empty if there was none.

    Args:
        record: content of results.json.
    """
    confirmed: JsonObject | None = _shown(record)["confirmed"]
    if not confirmed:
        return []
    metric: str = _shown(record)["metric"]["metric"]
    before, after = (_score(metric, confirmed[key]) for key in ("before", "after"))
    lost = confirmed["shrinkage"]
    of_what = f" of {metric}" if metric in OPPOSITES else ""
    lines = [
        confirmed["sentence"],
        f"{shown_metric(metric).name} of {confirmed['configuration']}: {before} in the sweep, {after} on fresh "
        f"seeds. Shrinkage{of_what}: {lost['value']:+.4f} ({lost['low']:+.4f} to {lost['high']:+.4f}).",
    ]
    for key, when in (("gain_before", "in the sweep"), ("gain", "on fresh seeds")):
        if gain := confirmed[key]:
            lines.append(
                f"Gain over the recipe as it is, {when}: {gain['value']:+.4f} ({gain['low']:+.4f} to "
                f"{gain['high']:+.4f}), {gain['n']} items."
            )
    return lines


# --- charts ---------------------------------------------------------------------------------------


def _charts(record: JsonObject) -> list[Chart]:
    """Draw each measure of alignment against each one of fluency."""
    charts = []
    for alignment in _ALIGNMENT:
        for fluency in _FLUENCY:
            points = [
                (
                    configuration["name"],
                    _figure(fluency, configuration),
                    _figure(alignment, configuration),
                )
                for configuration in record["configurations"]
                if alignment in configuration["scores"] and fluency in configuration["scores"]
            ]
            title = f"{shown_metric(alignment).name} against {shown_metric(fluency).name}"
            x, y = _axis(fluency), _axis(alignment)
            charts.append(trade_off_chart(title[0].upper() + title[1:], points, x=x, y=y))
    return [chart for chart in charts if chart is not None]


def _axis(metric: str) -> Axis:
    name, _, unit = shown_metric(metric)
    return Axis(f"{name} ({unit.name})" if unit.name else name)


def _figure(metric: str, configuration: JsonObject) -> float:
    value = configuration["scores"][metric]["value"]
    return shown_score(metric, Score(value, value, value)).value


def _parallel(record: JsonObject) -> list[Chart]:
    """Draw the settings and the judged metric of each configuration as parallel coordinates."""
    metric = record["metric"]["metric"]
    ran = [
        configuration
        for configuration in record["configurations"]
        if metric in configuration["scores"]
    ]
    columns = [_differing(_column(ran, key)) for key in record["parameters"]]
    columns.append([_figure(metric, configuration) for configuration in ran])
    places, ends = [], []
    for values in columns:
        at, low, high = _placed(values)
        places.append(at)
        ends.append((low, high))
    lines = [
        (configuration["name"], [at[n] for at in places]) for n, configuration in enumerate(ran)
    ]
    names = [*map(_short, record["parameters"]), shown_metric(metric).name]
    chart = parallel_chart("Settings and scores", names, lines, ends, best=record["best"])
    return [chart] if chart is not None else []


def _placed(values: Sequence[object]) -> tuple[list[float], str, str]:
    """Place values between 0 and 1, numbers by size and others by order; name both ends."""
    if not values:
        return [], "", ""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = [float(str(value)) for value in values]
        low, high = min(numbers), max(numbers)
        if low > 0 and high / low >= 100:  # as rates are tried: by their logarithm
            places = [math.log(number / low) / math.log(high / low) for number in numbers]
        else:
            places = [(number - low) / (high - low) if high > low else 0.5 for number in numbers]
        return places, f"{low:.4g}", f"{high:.4g}"
    words = list(map(_value, values))
    order = list(dict.fromkeys(words))
    last = max(1, len(order) - 1)
    return [order.index(word) / last for word in words], order[0], order[-1]


# --- the two documents ----------------------------------------------------------------------------


def _about(record: JsonObject, quote: Quote = str) -> str:
    seeds = ", ".join(map(str, record["seeds"]))
    goal = record["metric"]["goal"].removesuffix("e") + "ing"
    stop = "; early stop by the median rule was on" if record["early_stop"] else ""
    count = len(record["configurations"])
    shared = (
        f"; shared work took {duration(record['shared_seconds'])}"
        if record["shared_seconds"]
        else ""
    )
    model = f"Model {quote(record['run']['model'])}, " if record["run"] else ""
    return (
        f"{model}{count} configurations by {record['method']} search, seeds {seeds}, {goal} "
        f"{quote(record['metric']['name'])}{shared}{stop}."
    )


def _origin(record: JsonObject) -> Table | None:
    if not record["run"]:
        return None
    questions = record["questions"] or {}
    rows = [(f"questions, {key}", str(value)) for key, value in questions.items()]
    return origin_table(
        read_provenance(record["run"]),
        [*rows, ("scores of every item", "results.json"), ("the runs", "cNNN/seedN")],
    )


def _markdown(record: JsonObject) -> str:
    lines = [f"# Sweep {escape(record['name'])}", "", _about(record, escape)]
    lines += ["", f"**{escape(record['sentence'])}**"]
    for line in confirmation_lines(record):
        lines += ["", escape(line)]
    for heading, table, note in _tables(record):
        lines += ["", f"## {heading}", "", *table_lines(table), "", note]
    origin = _origin(record)
    if origin is not None:
        lines += ["", "## Where these numbers come from", "", *table_lines(origin)]
    lines += [
        "",
        *code_lines(record["grid"], "yaml"),
        "",
        *code_lines(record["recipe"], "yaml"),
        "",
    ]
    return "\n".join(lines)


def _html(record: JsonObject) -> str:
    return render(
        "sweep.html.jinja",
        name=record["name"],
        about=_about(record),
        sentence=record["sentence"],
        confirmed=confirmation_lines(record),
        tables=_tables(record),
        charts=_charts(record),
        charts_note=_CHARTS_NOTE,
        parallel=_parallel(record),
        origin=_origin(record),
        grid=record["grid"],
        recipe=record["recipe"],
    )
