"""The tasks of a recipe's `benchmark:`, with their questions."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from forty2.benchmark.task import Task
from forty2.benchmark.tasks import task_class, task_names
from forty2.errors import BenchmarkError, DataError
from forty2.recipe.schema import Benchmark, BenchmarkTask


class Loaded(NamedTuple):
    """A task and the questions that it loaded."""

    task: Task[Any]
    questions: Any


def check_tasks(benchmark: Benchmark) -> None:
    """Check the names of a recipe's tasks, without reading their questions.

    Raises:
        BenchmarkError: a run measures no such benchmark, or its data are not named.
    """
    for entry in benchmark.tasks:
        _measurable(entry)


def load_tasks(benchmark: Benchmark, seed: int) -> dict[str, Loaded]:
    """Load a recipe's tasks, by name, and draw the samples: the same for every stage of a run.

    Raises:
        BenchmarkError: there is no such benchmark, or its questions are unusable.
    """
    return {entry.task: load_task(entry, benchmark, seed) for entry in benchmark.tasks}


def load_task(entry: BenchmarkTask, benchmark: Benchmark, seed: int) -> Loaded:
    """Load one of a recipe's tasks, with as many questions as it asks for, if there are as many.

    Raises:
        BenchmarkError: as `load_tasks`.
    """
    kind = _measurable(entry)
    data = entry.data
    if data is None and kind.data_key == "questions":
        data = benchmark.questions
    settings: dict[str, Any] = {"data": data, "seed": seed}
    if "run_untrusted_code" in _fields(kind):
        settings["run_untrusted_code"] = entry.run_untrusted_code
    n = entry.n or benchmark.n
    try:
        task = kind(**settings)
        questions = task.load()
        if n is not None and n < task.source(questions).n:
            task = kind(**settings | {"n": n})
            questions = task.load()
    except (BenchmarkError, DataError) as error:
        raise BenchmarkError(f"benchmark.tasks: {entry.task}: {error}") from error
    return Loaded(task, questions)


def _measurable(entry: BenchmarkTask) -> type[Task[Any]]:
    """Return the task that an entry names, if a run can measure it."""
    where = f"benchmark.tasks: {entry.task}"
    names = [name for name in task_names() if {"data", "n"} <= _fields(task_class(name))]
    if entry.task not in names:
        raise BenchmarkError(
            f"{where}: not a benchmark that a run measures; there are {', '.join(names)}"
        )
    kind = task_class(entry.task)
    if entry.data is None and not _has_own_data(kind):
        raise BenchmarkError(f"{where}: needs its data; write {{task: {entry.task}, data: PATH}}")
    return kind


def _has_own_data(kind: type[Task[Any]]) -> bool:
    """Return whether a task has questions of its own, for a recipe that names none."""
    return any(one.name == "data" and one.default is None for one in dataclasses.fields(kind))


def _fields(kind: type[Task[Any]]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}
