"""The stages of a run, and their measurement.

A stage is the base model, the model after a phase, or the fused one. Each is measured on the run's
own held-out rows, in the tasks of the recipe's `benchmark:`, in the behaviour gates, in the perplexity
of neutral prose and in its divergence from the base. `stage_tables` shows the figures, `summary`
compares them with the base. The verdict is over the held-out rows, or over the first of those tasks
where there are none, and over the cost (`verdict`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.recipe_tasks import Loaded, load_tasks
from forty2.benchmark.results import Stage
from forty2.benchmark.runner import measure as measure_task
from forty2.benchmark.tasks.behaviour import Behaviour
from forty2.benchmark.tasks.divergence import Base, Divergence
from forty2.benchmark.tasks.held_out import HeldOut
from forty2.benchmark.tasks.perplexity import Perplexity
from forty2.data.checks.contamination import Benchmark as Searched
from forty2.files import JsonObject, read_sealed
from forty2.model.loading import LoadedModel
from forty2.progress import Progress, silent
from forty2.recipe.schema import Benchmark


@dataclass(frozen=True, slots=True)
class Measurement:
    """The tasks of a run with their questions, the same at every stage."""

    tasks: dict[str, Loaded]
    """The recipe's tasks, by name."""
    n: int | None
    """`benchmark.n` of the recipe."""
    seed: int

    def settings(self, stage: str) -> JsonObject:
        """Return the settings that must be equal for a stage's measurement to resume."""
        hashes = {
            f"{name}_sha256": task.source(questions).sha256
            for name, (task, questions) in self.tasks.items()
        }
        return {"stage": stage, **hashes}

    @property
    def facts_alone(self) -> bool:
        """Whether to ask only the plain facts. The other behaviour gates are asked where TruthfulQA is measured."""
        return "truthfulqa" not in self.tasks

    def benchmarks(self) -> list[Searched]:
        """Return the texts of each task's questions, of those tasks that state them."""
        texts = {name: task.question_texts(asked) for name, (task, asked) in self.tasks.items()}
        return [Searched(name, items) for name, items in texts.items() if items is not None]


def load_measurement(benchmark: Benchmark | None, seed: int) -> Measurement:
    """Read the questions of a recipe's benchmarks, and draw the samples; None: there are none.

    Raises:
        BenchmarkError: there is no such benchmark, or its questions are unusable.
    """
    if benchmark is None:
        return Measurement({}, None, seed)
    return Measurement(load_tasks(benchmark, seed), benchmark.n, seed)


def measure(
    loaded: LoadedModel,
    measurement: Measurement,
    base: Base,
    held_out: HeldOut | None = None,
    *,
    stage: str,
    adapter: str | None,
    partial: PartialResults,
    progress: Progress = silent,
) -> Stage:
    """Measure one model.

    Args:
        base: the base model's log-probabilities, from `divergence.base_of`.
        held_out: the run's held-out rows; None: it has none.
        stage: name of the stage.
        adapter: name of the adapter that the model carries.
        partial: holds items that were scored before a stop, and takes new ones.
    """
    n, seed = measurement.n, measurement.seed
    tasks: dict[str, Loaded] = {}
    if held_out is not None:
        tasks[held_out.name] = Loaded(held_out, held_out.load())
    tasks |= measurement.tasks
    for task in (
        Behaviour(n=n, seed=seed, facts_alone=measurement.facts_alone),
        Perplexity(n=n, seed=seed),
        Divergence(base=base, seed=seed),
    ):
        tasks[task.name] = Loaded(task, task.load())
    results = {
        name: measure_task(
            task,
            questions,
            loaded,
            adapter=adapter,
            partial=partial.under(f"{name}/"),
            report=functools.partial(progress, f"{stage}: {name}"),
        )
        for name, (task, questions) in tasks.items()
    }
    return Stage(stage, results)


def measure_held_out(
    before: Stage,
    loaded: LoadedModel,
    held_out: HeldOut,
    adapter: str | None,
    partial: PartialResults,
    progress: Progress = silent,
) -> Stage:
    """Measure the held-out rows of a stage whose other results are there."""
    result = measure_task(
        held_out,
        held_out.load(),
        loaded,
        adapter=adapter,
        partial=partial.under(f"{held_out.name}/"),
        report=functools.partial(progress, f"{before.name}: {held_out.name}"),
    )
    return Stage(before.name, {held_out.name: result, **before.without(held_out.name).results})


def read_stage(file: Path) -> Stage:
    """Read RUN/benchmarks/STAGE.json.

    Raises:
        RunError: the file is missing or damaged.
        BenchmarkError: it holds no stage.
    """
    return Stage.from_json(read_sealed(file), str(file))
