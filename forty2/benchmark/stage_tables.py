"""The figures of a run's stages, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import NamedTuple

from forty2.benchmark.compare import Comparison
from forty2.benchmark.regression import bucket_cells
from forty2.benchmark.results import Result, Stage
from forty2.benchmark.stage_scores import ALWAYS, metric_names
from forty2.benchmark.tasks import task_class
from forty2.benchmark.tasks.held_out import (
    CHAT_LOSS,
    LENGTH,
    PAIRS,
    PASSED,
    RATINGS,
    STOPS,
    HeldOut,
)
from forty2.files import JsonObject
from forty2.metric_names import metric_name


class _Figure(NamedTuple):
    """A figure with a column of its own."""

    task: str
    title: str
    form: str
    value: Callable[[JsonObject], float | None]
    """Function that takes it from the task's figures; None: it was not measured."""


def _over_gates(name: str, figures: JsonObject) -> float | None:
    """Return a figure over all gates; None: only plain facts were asked."""
    return figures[name]["all"] if len(figures["gates"]) > 1 else None


_FIGURES = {
    "mc1": _Figure("truthfulqa", "MC1", ".3f", itemgetter("mc1")),
    "mc2": _Figure("truthfulqa", "MC2", ".3f", itemgetter("mc2")),
    "facts_right": _Figure("behaviour", "facts", ".1%", itemgetter("right_rate")),
    "leak_rate": _Figure("behaviour", "leaks", ".1%", itemgetter("leak_rate")),
    "preference": _Figure("behaviour", "prefers", ".1%", partial(_over_gates, "preference")),
    "margin": _Figure("behaviour", "margin", ".3f", partial(_over_gates, "margin")),
    "perplexity": _Figure("perplexity", "perplexity", ".2f", itemgetter("perplexity")),
    "kl": _Figure("divergence", "KL", ".2g", itemgetter("kl")),
}
"""Figures by name. The other tasks have columns named as their metrics are."""
_OWN_COLUMNS = {
    PAIRS: ("pairs", ".1%"),
    RATINGS: ("ratings", ".1%"),
    CHAT_LOSS: ("chat loss", ".3f"),
    PASSED: ("passed", ".1%"),
    STOPS: ("stopped", ".1%"),
    LENGTH: ("tokens", ".1f"),
}
"""Titles and forms of the means over the held-out rows."""


def figures_of(stage: Stage) -> dict[str, float]:
    """Return the figures of one stage by name, those that were measured; KL is in nats a token."""
    values = {
        name: figure.value(stage[figure.task].figures)
        for name, figure in _FIGURES.items()
        if figure.task in stage.results
    }
    return {name: value for name, value in values.items() if value is not None}


def held_out_means(stage: Stage) -> dict[str, float]:
    """Return the means over the held-out rows, by metric; empty: they were not measured."""
    if "held_out" not in stage.results:
        return {}
    return HeldOut.stored_means(stage["held_out"].figures)


def tasks_of(stage: Stage) -> dict[str, Result]:
    """Return the results of the recipe's tasks, by name, and of the held-out rows."""
    return {name: result for name, result in stage.results.items() if name not in ALWAYS}


def more_figures(stage: Stage) -> dict[str, float]:
    """Return the means of tasks without columns of their own, by metric: those that a verdict is over.

    The metrics are named as a comparison of stages names them.
    """
    in_columns = {"held_out", *(figure.task for figure in _FIGURES.values())}
    taken, figures = set[str](), dict[str, float]()
    for name, result in tasks_of(stage).items():
        task = task_class(name)
        means = task.stored_means(result.figures)
        shown = metric_names(name, means, taken)
        taken |= {*shown.values()}
        if name not in in_columns:
            figures.update({shown[m]: means[m] for m in task.judged if m in means})
    return figures


def table(stages: Sequence[Stage]) -> str:
    """Format the stages of a run: the held-out rows first, then everything else.

    Pairs and ratings are against the base, which has 50%. Facts: share of plain facts answered right.
    Leak rate, preference and margin are on held-out prompts; KL is from the base, in nats per token.
    """
    return "\n\n".join([*(_aligned(rows) for rows in columns(stages)), *caution_lines(stages)])


def caution_lines(stages: Sequence[Stage]) -> list[str]:
    """List what a reader must know about figures in the table, one line each."""
    return [
        f"{name}: {text}"
        for task, result in stages[-1].results.items()
        for name, text in task_class(task).cautions(result.figures).items()
    ]


def columns(stages: Sequence[Stage]) -> list[list[list[str]]]:
    """Return the cells of the tables of a run's stages, each with its head as the first row.

    The first ones are of the held-out rows and of the eval prompts, where they were measured.
    """
    tables = []
    own = [held_out_means(stage) for stage in stages]
    if own[0]:
        chosen = {key: shown_as for key, shown_as in _OWN_COLUMNS.items() if key in own[0]}
        rows = [["your held-out rows", *(name for name, _ in chosen.values())]]
        for stage, means in zip(stages, own, strict=True):
            cells = [format(means[key], form) for key, (_, form) in chosen.items()]
            rows.append([stage.name, *cells])
        tables.append(rows)
    if cells_of_buckets := bucket_cells(stages):
        tables.append(cells_of_buckets)
    shown = {key: shown_as for key, shown_as in _FIGURES.items() if key in figures_of(stages[0])}
    more = list(more_figures(stages[0]))
    rows = [["stage", *(figure.title for figure in shown.values()), *more]]
    for stage in stages:
        values, others = figures_of(stage), more_figures(stage)
        cells = [format(values[key], figure.form) for key, figure in shown.items()]
        rows.append([stage.name, *cells, *(f"{others[name]:.3f}" for name in more)])
    return [*tables, rows]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format a table: the first column to the left, the others to the right, a rule below the head."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        row[0].ljust(max(first, 12))
        + "".join(
            cell.rjust(max(width, 5) + 2) for cell, width in zip(row[1:], others, strict=True)
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def changes_table(comparisons: Mapping[str, Comparison], tasks: Collection[str]) -> str:
    """Format each stage's paired change from the base, with each task's own verdict.

    Args:
        comparisons: by stage.
        tasks: names of the tasks to show.
    """
    head = f"{'change from the base':<37}{'change':>7}  {'95% interval':<18}verdict"
    lines = [head, "-" * 79]
    for stage, comparison in comparisons.items():
        for task, judgement in comparison.tasks.items():
            if task not in tasks:
                continue
            for metric in judgement.judged:
                change = comparison.metrics[metric]
                name = metric_name(metric)
                interval = f"{change.low:+.3f} to {change.high:+.3f}"
                lines.append(
                    f"{stage:<16} {name:<20}{change.difference:>+7.3f}  {interval:<18}{change.verdict}"
                )
    return "\n".join(lines)
