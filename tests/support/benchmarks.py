"""Benchmarks measured without files."""

from __future__ import annotations

from typing import Any

from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.runner import measure
from forty2.benchmark.task import Report, Task
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
