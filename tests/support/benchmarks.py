"""Benchmarks measured without files."""

from __future__ import annotations

from typing import Any

import numpy as np

from forty2.benchmark import metrics
from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.runner import measure
from forty2.benchmark.task import Report, Task
from forty2.benchmark.tasks import task_class
from forty2.files import JsonObject
from forty2.model.loading import LoadedModel


def records_of(
    task: Task[Any], loaded: LoadedModel, questions: Any, report: Report = lambda *_: None
) -> list[JsonObject]:
    """The record of each item, scored by a loaded model."""
    return task.score(loaded, questions, PartialResults.in_memory(), report)


def result_of(
    task: Task[Any],
    loaded: LoadedModel,
    questions: Any,
    report: Report = lambda *_: None,
    adapter: str | None = None,
) -> JsonObject:
    """The result of a loaded model, as its file would hold it."""
    partial = PartialResults.in_memory()
    result = measure(task, questions, loaded, adapter=adapter, partial=partial, report=report)
    return result.to_json()


def figures_of(task: type[Task[Any]], records: list[JsonObject]) -> JsonObject:
    """What scored items amount to."""
    return task.figures(task.items(records))


def summarized(name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures and items of a benchmark, from the items' records."""
    task = task_class(name)
    return {**figures_of(task, records), "items": task.items_to_json(task.items(records))}


def result(items: list[tuple[list[float], list[float]]], **fields: Any) -> dict[str, Any]:
    """A result of questions with these scores; of mc1 the first, of mc2 the first two are true."""
    rows = [
        {
            "question": f"Question {number}?",
            "category": "odd" if number % 2 else "even",
            "mc1": {"loglik": single, "labels": [1] + [0] * (len(single) - 1)},
            "mc2": {"loglik": multiple, "labels": [1, 1] + [0] * (len(multiple) - 2)},
        }
        for number, (single, multiple) in enumerate(items)
    ]
    values = [metrics.item_metrics(row) for row in rows]
    means = {name: float(np.mean([v[name] for v in values])) for name in metrics.METRICS}
    base = {"benchmark": "truthfulqa", "questions": "ours", "questions_sha256": "0", "model": "m"}
    return {**base, "adapter": None, **means, "items": rows, **fields}


def random_result(n: int, *, seed: int, lift: float = 0.0) -> dict[str, Any]:
    """Scores drawn at random; `lift` favours the true options."""
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(n):
        single, multiple = rng.normal(size=4), rng.normal(size=5)
        single[0] += lift
        multiple[:2] += lift
        items.append((single.tolist(), multiple.tolist()))
    return result(items)
