"""The metrics that a sweep measures at the end of each run, by the names that a grid gives them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from forty2.benchmark.metrics import METRICS
from forty2.benchmark.results import Stage
from forty2.benchmark.stage_scores import metric_names
from forty2.benchmark.stats import Values
from forty2.benchmark.task import Metric
from forty2.benchmark.tasks import task_class
from forty2.benchmark.tasks.behaviour import FACTS, GATES
from forty2.benchmark.tasks.divergence import KL
from forty2.benchmark.tasks.held_out import (
    CHAT_LOSS,
    LENGTH,
    PAIR_MARGIN,
    PAIRS,
    PASSED,
    RATINGS,
    STOPS,
)
from forty2.errors import RecipeError
from forty2.metric_names import FACTS_RIGHT, NO_LEAK, OPPOSITES, TEXTS, metric_name
from forty2.recipe.grid import Grid
from forty2.recipe.schema import Recipe
from forty2.runs.held_out import is_measured
from forty2.runs.phase_data import names_held_out_rows
from forty2.text import row_kinds

_BY_ROWS = {
    row_kinds.CONVERSATIONS.name: (CHAT_LOSS,),
    row_kinds.PAIRS.name: (PAIRS, PAIR_MARGIN),
    row_kinds.RATED.name: (RATINGS,),
}
"""Metrics of held-out rows, by the kind of row."""


class Objective(NamedTuple):
    """What a sweep looks for."""

    name: str
    """The metric as it is shown."""
    metric: str
    """The measured metric."""
    sign: float
    """1 if a higher value of the measured metric is better, -1 if a lower one is."""


class Measured(NamedTuple):
    """A metric's scores of one model."""

    metric: Metric
    """Its range."""
    values: Values
    """Scores of the items, (n,)."""
    items: tuple[str, ...]
    """Names of the items: only scores of the same items can be paired."""


def objective_of(grid: Grid, recipe: Recipe) -> Objective:
    """Find the metric that a grid names among those that the recipe's runs measure.

    Raises:
        RecipeError: nothing measures it.
    """
    there = list(measured_by(recipe))
    named = {_plain(name): (name, metric) for metric in there for name in _names(metric)}
    found = named.get(_plain(grid.metric))
    if found is None:
        where = f"{grid.place}:{grid.metric_line}: metric.name: {grid.metric}"
        if not there:
            raise RecipeError(
                f"{where}: {recipe.name} measures nothing; add validation rows or a benchmark"
            )
        close = difflib.get_close_matches(_plain(grid.metric), [*named], 1)
        measured = ", ".join(map(metric_name, there))
        hint = f"did you mean {named[close[0]][0]}?" if close else f"it measures {measured}"
        raise RecipeError(f"{where}: {recipe.name} does not measure it; {hint}")
    name, metric = found
    rises = name not in OPPOSITES.values()
    return Objective(name, metric, 1.0 if rises == (grid.goal == "maximize") else -1.0)


def _names(metric: str) -> tuple[str, str]:
    """Return what a grid may call a metric: its name in the record, and the one that reports show."""
    return metric, metric_name(metric)


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def measured_by(recipe: Recipe) -> Iterator[str]:
    """Yield the metrics of the record that a recipe's runs measure, without running it."""
    if not is_measured(recipe):
        return
    benchmark = recipe.benchmark
    tasks = [entry.task for entry in benchmark.tasks] if benchmark is not None else []
    if benchmark is None or benchmark.held_out:
        yield from _of_held_out_rows(recipe)
    for task in tasks:
        yield from METRICS if task == "truthfulqa" else task_class(task).judged
    yield from (NO_LEAK, FACTS_RIGHT)
    yield "prefers"
    for gate in GATES if "truthfulqa" in tasks else (FACTS,):
        yield from (f"prefers: {gate}", f"answers: {gate}")
    yield from (TEXTS, KL)


def _of_held_out_rows(recipe: Recipe) -> Iterator[str]:
    phases = recipe.phases.values()
    kinds = [phase.row_kind.name for phase in phases if names_held_out_rows(phase)]
    for kind, names in _BY_ROWS.items():
        if kind in kinds:
            yield from names
    if kinds:
        yield from (STOPS, LENGTH)
    if any(phase.eval_prompts is not None for phase in phases):
        yield PASSED


def row_kinds_of(metric: str) -> frozenset[str]:
    """Return the kinds of held-out rows that a metric of the record is measured on; none: not on rows."""
    if metric in (STOPS, LENGTH):
        return frozenset(_BY_ROWS)
    return frozenset(kind for kind, names in _BY_ROWS.items() if metric in names)


def measurements(stage: Stage) -> dict[str, Measured]:
    """Collect the scores of a stage by metric, for metrics with at least two items."""
    found: dict[str, Measured] = {}
    for task, result in stage.results.items():
        kind = task_class(task)
        scores: dict[str, list[float]] = {}
        names: dict[str, list[str]] = {}
        for item in result.items:
            for name, score in item.scores.items():
                scores.setdefault(name, []).append(score)
                names.setdefault(name, []).append(str(kind.identify(item.record)))
        shown: Mapping[str, str] = metric_names(task, scores, found)
        for name, values in scores.items():
            if len(values) > 1:
                items = tuple(names[name])
                found[shown[name]] = Measured(kind.metric(name), np.array(values), items)
    return found
