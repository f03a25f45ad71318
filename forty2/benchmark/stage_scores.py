"""Scores of a result, or of all results of a stage, by metric; two are the same in questions or refused."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

import numpy as np

from forty2.benchmark.results import Result, Stage
from forty2.benchmark.stats import Values
from forty2.benchmark.task import Metric
from forty2.benchmark.tasks import task_class
from forty2.errors import BenchmarkError, printable

ALWAYS = ("behaviour", "perplexity", "divergence")
"""Tasks that are measured at every stage, after those of the recipe: the price, never the benefit."""


@dataclass(frozen=True, slots=True)
class MetricScores:
    """Scores in one metric, by the item's place."""

    metric: Metric
    by_place: dict[int, float]

    def values(self) -> Values:
        """Return the scores in the items' order, (n,)."""
        return np.array(list(self.by_place.values()), np.float64)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a result, or of all results of a stage one after the other."""

    names: dict[str, str]
    """Name of each result's questions, by task."""
    model: str
    settings: dict[str, object]
    """Settings that must be the same in both results."""
    asked: list[tuple[str, object]]
    """Each item's name, and its further facts that must be the same in both results."""
    metrics: dict[str, MetricScores]
    tasks: dict[str, tuple[str, ...]]
    """Metrics that each result's own verdict would be over, by task."""
    categories: dict[str, list[int]]
    """Places of the items of each category."""
    category_metric: str | None
    """The metric whose change is reported by category."""

    @property
    def benefit_task(self) -> str:
        """Task that shows the benefit: of a stage, the first that is not a cost; "" if there is none."""
        price = ALWAYS if self.settings.get("benchmark") == "stage" else ()
        return next((task for task, names in self.tasks.items() if names and task not in price), "")


def scores_of(measured: Result | Stage) -> Scores:
    """Collect the scores of a result or stage by metric, those of the verdict first.

    A metric whose name an earlier result has already is named after its task, too.
    """
    if isinstance(measured, Result):
        return _scores_of_result(measured)
    parts = {name: _scores_of_result(result) for name, result in measured.results.items()}
    first, *_ = parts.values()
    settings: dict[str, object] = {}
    asked: list[tuple[str, object]] = []
    metrics: dict[str, MetricScores] = {}
    tasks: dict[str, tuple[str, ...]] = {}
    categories: dict[str, list[int]] = {}
    category_metric: str | None = None
    for name, part in parts.items():
        if not part.metrics:
            continue
        shown = metric_names(name, part.metrics, metrics)
        (judged,) = part.tasks.values()
        tasks[name] = tuple(shown[metric] for metric in judged)
        for key, value in part.settings.items():
            settings[key if part is first else f"{name}: {key}"] = value
        for metric, scores in part.metrics.items():
            shifted = {len(asked) + place: score for place, score in scores.by_place.items()}
            metrics[shown[metric]] = MetricScores(scores.metric, shifted)
        if category_metric is None and part.categories:  # the first that has some
            category_metric = part.category_metric
            categories = {
                kind: [len(asked) + place for place in places]
                for kind, places in part.categories.items()
            }
        asked += part.asked
    settings["benchmark"] = "stage"
    names = {name: found for part in parts.values() for name, found in part.names.items()}
    return Scores(names, first.model, settings, asked, metrics, tasks, categories, category_metric)


def metric_names(task: str, metrics: Iterable[str], taken: Container[str]) -> dict[str, str]:
    """Return the name of each metric of a task among those of a whole stage."""
    return {name: f"{task}: {name}" if name in taken else name for name in metrics}


def _scores_of_result(result: Result) -> Scores:
    task = task_class(result.benchmark)
    found: dict[str, dict[int, float]] = {}
    categories: dict[str, list[int]] = {}
    for place, item in enumerate(result.items):
        for name, score in item.scores.items():
            found.setdefault(name, {})[place] = score
        if task.category_metric is not None and item.category is not None:
            categories.setdefault(item.category, []).append(place)
    metrics = {
        name: MetricScores(task.metric(name), found[name])
        for name in task.order(list(found))
        if task.metric(name).better != "neither"
    }
    judged = tuple(name for name in task.judged if name in metrics)
    return Scores(
        names={result.benchmark: printable(result.questions)},
        model=printable(result.model_name),
        settings={
            "benchmark": result.benchmark,
            f"{task.data_key}_sha256": result.data_sha256,
            **{key: result.settings.get(key) for key in task.must_agree},
        },
        asked=[task.identify(item.record) for item in result.items],
        metrics=metrics,
        tasks={result.benchmark: judged},
        categories=categories,
        category_metric=task.category_metric,
    )


def check_same(old: Scores, new: Scores) -> None:
    """Refuse results of different questions or settings.

    Raises:
        BenchmarkError: says where they differ.
    """
    for key in {**old.settings, **new.settings}:
        before, after = old.settings.get(key), new.settings.get(key)
        if key.endswith("data_sha256") and None in (before, after):
            continue  # not recorded by an earlier release; the items themselves are compared
        if before != after:
            raise BenchmarkError(
                f"not comparable: {key} is {before!r} ({_first_name(old)}) before and {after!r} "
                f"({_first_name(new)}) after; measure both in the same way"
            )
    if len(old.asked) != len(new.asked):
        raise BenchmarkError(
            f"not comparable: {len(old.asked)} questions before, {len(new.asked)} after; use the "
            "same `n` and `seed`"
        )
    for number, (one, other) in enumerate(zip(old.asked, new.asked, strict=True), 1):
        if one[0] != other[0]:
            raise BenchmarkError(
                f"not comparable: item {number} is {one[0]!r} before and {other[0]!r} after; use "
                "the same `n` and `seed`"
            )
        if one[1] != other[1]:
            raise BenchmarkError(
                f"not comparable: item {number} ({one[0]!r}) has other options or another answer; "
                "measure both on one file"
            )
    for name in {**old.metrics, **new.metrics}:
        places = [
            scores.metrics[name].by_place.keys() if name in scores.metrics else set()
            for scores in (old, new)
        ]
        if places[0] != places[1]:
            raise BenchmarkError(
                f"not comparable: {name} covers other items before than after; measure both on one "
                "file"
            )


def _first_name(scores: Scores) -> str:
    return next(iter(scores.names.values()))
