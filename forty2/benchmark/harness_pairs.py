"""Samples of two models, paired item by item, or refused. NumPy only."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from forty2.benchmark.harness_samples import HarnessSamples, Sample, SampledTask
from forty2.benchmark.stage_scores import MetricScores, Scores, metric_names
from forty2.errors import BenchmarkError, first_names, printable

Key = tuple[str, int]
"""Fact that identifies an item in both results, and how many items before have the same."""


def paired_scores(before: HarnessSamples, after: HarnessSamples) -> tuple[Scores, Scores]:
    """Return the scores of both, with the same items in the same order.

    Items are the same if the hashes of their documents are; where one side was measured by forty2, if
    the questions are.

    Raises:
        BenchmarkError: tasks, settings or items differ; the message says where.
    """
    mixed = before.is_ours != after.is_ours
    names = _shared_tasks(before, after, mixed=mixed)
    collected = (_Collector(before), _Collector(after))
    prompts = 0
    for name in names:
        tasks = before.tasks[name], after.tasks[name]
        _check_settings(*tasks)
        keys, old, new = _matched(*tasks)
        metrics = [metric for metric in tasks[0].metrics if metric in tasks[1].metrics]
        if not mixed and len(metrics) != len({*tasks[0].metrics, *tasks[1].metrics}):
            raise BenchmarkError(f"not comparable: {name} has other metrics before than after")
        if not metrics:
            raise BenchmarkError(f"not comparable: {name} has no metric that both results have")
        for part, task, items in zip(collected, tasks, (old, new), strict=True):
            part.add(task, metrics, keys, items, alone=len(names) == 1)
        prompts += sum(
            None not in (one.prompt_hash, other.prompt_hash)
            and one.prompt_hash != other.prompt_hash
            for one, other in zip(old, new, strict=True)
        )
    if prompts:
        warnings.warn(
            f"{prompts} of {len(collected[0].asked)} items have another prompt before than after (chat "
            "template or examples): the change is of model and prompt together",
            stacklevel=2,
        )
    return collected[0].scores(), collected[1].scores()


def _shared_tasks(before: HarnessSamples, after: HarnessSamples, *, mixed: bool) -> list[str]:
    """List the tasks to compare; where one side is forty2's, those that both have."""
    only = [
        sorted(one.tasks.keys() - other.tasks.keys())
        for one, other in ((before, after), (after, before))
    ]
    shared = [name for name in before.tasks if name in after.tasks]
    sides = [
        f"{first_names(names, 3)} only {side}"
        for names, side in zip(only, ("before", "after"), strict=True)
        if names
    ]
    if not shared or (sides and not mixed):
        raise BenchmarkError(f"not comparable: {'; '.join(sides)}; evaluate the same tasks")
    if sides:
        warnings.warn(f"left out, for want of a counterpart: {'; '.join(sides)}", stacklevel=3)
    return shared


def _check_settings(old: SampledTask, new: SampledTask) -> None:
    for key in old.settings.keys() & new.settings.keys():
        before, after = old.settings[key], new.settings[key]
        if str(before) != str(after):
            raise BenchmarkError(
                f"not comparable: {old.name}: {key} is {before} before and {after} after; evaluate "
                "both in the same way"
            )


def _matched(old: SampledTask, new: SampledTask) -> tuple[list[Key], list[Sample], list[Sample]]:
    """Return what identifies each item, and the items of both in this order."""
    ways: list[Callable[[Sample], str | None]] = [
        lambda sample: sample.doc_hash,
        lambda sample: sample.question,
        lambda sample: None if sample.doc_hash else str(sample.doc_id),
    ]
    for way in ways:
        by_key = _by_key(old, way), _by_key(new, way)
        if by_key[0] and by_key[1] and by_key[0].keys() & by_key[1].keys():
            break
    else:
        raise BenchmarkError(
            f"not comparable: {old.name}: no item of the {len(old.items)} before is among the "
            f"{len(new.items)} after, by document or question"
        )
    if by_key[0].keys() != by_key[1].keys():
        both = len(by_key[0].keys() & by_key[1].keys())
        raise BenchmarkError(
            f"not comparable: {old.name} has {len(old.items)} items before and {len(new.items)} after, "
            f"{both} of them in both; evaluate both on the same items (its limit and samples)"
        )
    keys = list(by_key[0])
    pairs = [(by_key[0][key], by_key[1][key]) for key in keys]
    for one, other in pairs:
        # the harness's target of a generated answer is its whole solution, ours the number alone
        if one.target.isdigit() and other.target.isdigit() and one.target != other.target:
            raise BenchmarkError(
                f"not comparable: {old.name}: doc_id {one.doc_id} has another answer before "
                f"({one.target}) than after ({other.target})"
            )
    return keys, [one for one, _ in pairs], [other for _, other in pairs]


def _by_key(task: SampledTask, way: Callable[[Sample], str | None]) -> dict[Key, Sample] | None:
    """Return the items by a fact and its count, in the order of the file's ids; None: one has none."""
    found: dict[Key, Sample] = {}
    counts: dict[str, int] = {}
    for item in sorted(task.items, key=lambda item: item.doc_id):
        fact = way(item)
        if fact is None:
            return None
        counts[fact] = counts.get(fact, 0) + 1
        found[fact, counts[fact]] = item
    return found


class _Collector:
    """Scores of one model, task by task."""

    def __init__(self, samples: HarnessSamples) -> None:
        self.model, self.source = samples.model, samples.source
        self.asked: list[tuple[str, object]] = []
        self.metrics: dict[str, MetricScores] = {}
        self.tasks: list[str] = []

    def add(
        self,
        task: SampledTask,
        metrics: list[str],
        keys: list[Key],
        items: list[Sample],
        *,
        alone: bool,
    ) -> None:
        """Add a task's scores; with others, its metrics are named after it, too."""
        taken = () if alone else metrics
        for metric, name in metric_names(task.name, metrics, taken).items():
            kind = task.metric(metric)
            scores = {
                len(self.asked) + place: item.scores[metric]
                for place, item in enumerate(items)
                if metric in item.scores
            }
            if kind.better != "neither":
                self.metrics[name] = MetricScores(kind, scores)
        self.asked += [(f"{task.name}, {key}", None) for key in keys]
        self.tasks.append(task.name)

    def scores(self) -> Scores:
        """Return all scores, under one verdict."""
        return Scores(
            names={self.source: printable(first_names(self.tasks, 3))},
            model=printable(self.model),
            settings={"benchmark": self.source},
            asked=self.asked,
            metrics=self.metrics,
            tasks={self.source: tuple(self.metrics)},
            categories={},
            category_metric=None,
        )
