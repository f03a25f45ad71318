"""The stages of a run: their measurement, their table, and their comparison with the base.

A stage is the base model, the model after a phase, or the fused one. Each is measured in the tasks
of the recipe's `benchmark:`, in the held-out behaviour gates, in the perplexity of neutral prose and
in its divergence from the base. The verdict is over TruthfulQA and over the cost (`verdict`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from forty2.benchmark.compare import Comparison, compare, metric_names, shown_metric
from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.results import Result, Stage
from forty2.benchmark.runner import measure as measure_task
from forty2.benchmark.task import Task
from forty2.benchmark.tasks import task_class, task_names
from forty2.benchmark.tasks.behaviour import Behaviour
from forty2.benchmark.tasks.divergence import Base, Divergence
from forty2.benchmark.tasks.perplexity import Perplexity
from forty2.benchmark.tasks.truthfulqa import TruthfulQA
from forty2.benchmark.truthfulqa_questions import Questions, load_questions, sample
from forty2.data.checks.contamination import Benchmark as Searched
from forty2.data.checks.contamination import Hit
from forty2.errors import BenchmarkError, DataError
from forty2.files import JsonObject, read_sealed
from forty2.model.loading import LoadedModel
from forty2.progress import Progress, silent
from forty2.recipe.schema import Benchmark, BenchmarkTask, Cost

ALWAYS = ("behaviour", "perplexity", "divergence")
"""Tasks that are measured at every stage, after those of the recipe."""


class Loaded(NamedTuple):
    """A task and the questions that it loaded."""

    task: Task[Any]
    questions: Any


@dataclass(frozen=True, slots=True)
class Measurement:
    """The tasks of a run with their questions, the same at every stage."""

    truthfulqa: Questions
    more: dict[str, Loaded]
    """The recipe's other tasks, by name."""
    n: int | None
    """Largest number of held-out prompts and of neutral windows; None: all."""
    seed: int

    def settings(self, stage: str) -> JsonObject:
        """Return the settings that must be equal for a stage's measurement to resume."""
        more = {
            f"{name}_sha256": task.source(questions).sha256
            for name, (task, questions) in self.more.items()
        }
        return {"stage": stage, "questions_sha256": self.truthfulqa.sha256, **more}

    @property
    def tasks(self) -> dict[str, Loaded]:
        """All tasks of the recipe, by name."""
        return {
            "truthfulqa": Loaded(TruthfulQA(seed=self.seed), self.truthfulqa),
            **self.more,
        }

    def benchmarks(self) -> list[Searched]:
        """Return the texts of each task's questions, of those tasks that state them."""
        texts = {name: task.question_texts(asked) for name, (task, asked) in self.tasks.items()}
        return [Searched(name, items) for name, items in texts.items() if items is not None]


def load_measurement(benchmark: Benchmark, seed: int) -> Measurement:
    """Read the questions of a recipe's benchmarks, and draw the samples.

    Raises:
        BenchmarkError: there is no such benchmark, or its questions are unusable.
    """
    more = load_tasks(benchmark, seed)
    return Measurement(questions_of(benchmark, seed), more, benchmark.n, seed)


def check_tasks(benchmark: Benchmark) -> None:
    """Check the names of a recipe's tasks, without reading their questions.

    Raises:
        BenchmarkError: a run measures no such benchmark, or its data are not named.
    """
    for entry in _others(benchmark):
        _measurable(entry)


def load_tasks(benchmark: Benchmark, seed: int) -> dict[str, Loaded]:
    """Load a recipe's tasks other than TruthfulQA, by name.

    Raises:
        BenchmarkError: there is no such benchmark, or its questions are unusable.
    """
    return {entry.task: _load(entry, entry.n or benchmark.n, seed) for entry in _others(benchmark)}


def _others(benchmark: Benchmark) -> list[BenchmarkTask]:
    return [entry for entry in benchmark.tasks if entry.task != "truthfulqa"]


def questions_of(benchmark: Benchmark, seed: int) -> Questions:
    """Read TruthfulQA's questions, and draw the sample: the same for every stage of a run."""
    entry = next(entry for entry in benchmark.tasks if entry.task == "truthfulqa")
    questions = load_questions(entry.data or benchmark.questions)
    n = entry.n or benchmark.n
    if n is not None and n < len(questions.items):
        questions = sample(questions, n, seed)
    return questions


def _load(entry: BenchmarkTask, n: int | None, seed: int) -> Loaded:
    """Load one of a recipe's other tasks, with at most `n` questions."""
    kind = _measurable(entry)
    try:
        settings: dict[str, Any] = {"data": entry.data, "seed": seed}
        if "run_untrusted_code" in _fields(kind):
            settings["run_untrusted_code"] = entry.run_untrusted_code
        task = kind(**settings)
        questions = task.load()
        if n is not None and n < task.source(questions).n:
            task = kind(**{**settings, "n": n})
            questions = task.load()
    except (BenchmarkError, DataError) as error:
        raise BenchmarkError(f"benchmark.tasks: {entry.task}: {error}") from error
    return Loaded(task, questions)


def _measurable(entry: BenchmarkTask) -> type[Task[Any]]:
    """The task that an entry names, if a run can measure it."""
    where = f"benchmark.tasks: {entry.task}"
    names = [name for name in task_names() if {"data", "n"} <= _fields(task_class(name))]
    if entry.task not in names:
        there = ", ".join(sorted([*names, "truthfulqa"]))
        raise BenchmarkError(f"{where}: not a benchmark that a run measures; there are {there}")
    if entry.data is None:
        raise BenchmarkError(f"{where}: needs its data; write {{task: {entry.task}, data: PATH}}")
    return task_class(entry.task)


def _fields(kind: type[Task[Any]]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def measure(
    loaded: LoadedModel,
    measurement: Measurement,
    base: Base,
    *,
    stage: str,
    adapter: str | None,
    partial: PartialResults,
    progress: Progress = silent,
) -> Stage:
    """Measure one model.

    Args:
        base: the base model's log-probabilities, from `divergence.base_of`.
        stage: name of the stage.
        adapter: name of the adapter that the model carries.
        partial: holds items that were scored before a stop, and takes new ones.
    """
    n, seed = measurement.n, measurement.seed
    tasks = measurement.tasks
    for task in (
        Behaviour(n=n, seed=seed),
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
            partial=partial if name == "truthfulqa" else partial.under(f"{name}/"),
            report=functools.partial(progress, f"{stage}: {name}"),
        )
        for name, (task, questions) in tasks.items()
    }
    return Stage(stage, results)


def read_stage(file: Path) -> Stage:
    """Read RUN/benchmarks/STAGE.json.

    Raises:
        RunError: the file is missing or damaged.
        BenchmarkError: it holds no stage.
    """
    return Stage.from_json(read_sealed(file), str(file))


# --- a run's summary ------------------------------------------------------------------------------


class Line(NamedTuple):
    """One stage in the table."""

    stage: str
    mc1: float
    mc2: float
    leak_rate: float
    preference: float
    margin: float
    perplexity: float
    kl: float
    """KL from the base, in nats per token."""


def line(stage: Stage) -> Line:
    """Return the figures of one stage."""
    truthfulqa, gates = stage["truthfulqa"].figures, stage["behaviour"].figures
    return Line(
        stage.name,
        truthfulqa["mc1"],
        truthfulqa["mc2"],
        gates["leak_rate"],
        gates["preference"]["all"],
        gates["margin"]["all"],
        stage["perplexity"].figures["perplexity"],
        stage["divergence"].figures["kl"],
    )


def tasks_of(stage: Stage) -> dict[str, Result]:
    """Return the results of the recipe's tasks, by name: TruthfulQA's first."""
    return {name: result for name, result in stage.results.items() if name not in ALWAYS}


def more_figures(stage: Stage) -> dict[str, float]:
    """Return the means of the recipe's other tasks, by metric: those that a verdict would be over.

    The metrics are named as a comparison of stages names them.
    """
    taken, figures = set[str](), dict[str, float]()
    for name, result in tasks_of(stage).items():
        task = task_class(name)
        means = task.stored_means(result.figures)
        shown = metric_names(name, means, taken)
        taken |= {*shown.values()}
        if name != "truthfulqa":
            figures.update({shown[m]: means[m] for m in task.judged if m in means})
    return figures


def table(stages: Sequence[Stage]) -> str:
    """Format the stages of a run.

    Leak rate, preference and margin are on held-out prompts; KL is from the base, in nats per token.
    """
    head, *rows = columns(stages)
    widths = [8, 8, 8, 9, 9, 12, 10, *(max(8, len(name) + 2) for name in head[8:])]
    lines = [
        f"{row[0]:<16}" + "".join(f"{cell:>{n}}" for cell, n in zip(row[1:], widths, strict=True))
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def columns(stages: Sequence[Stage]) -> list[list[str]]:
    """Return the cells of a table of stages; the first row is its head."""
    more = list(more_figures(stages[0]))
    rows = [["stage", "MC1", "MC2", "leaks", "prefers", "margin", "perplexity", "KL", *more]]
    for stage in stages:
        one, others = line(stage), more_figures(stage)
        shares = [f"{one.leak_rate:.1%}", f"{one.preference:.1%}", f"{one.margin:.3f}"]
        drift = [f"{one.perplexity:.2f}", f"{one.kl:.2g}"]
        figures = [f"{others[name]:.3f}" for name in more]
        rows.append([one.stage, f"{one.mc1:.3f}", f"{one.mc2:.3f}", *shares, *drift, *figures])
    return rows


def changes_table(comparisons: Mapping[str, Comparison], tasks: Collection[str]) -> str:
    """Format each stage's paired change from the base, with each task's own verdict.

    Args:
        comparisons: by stage.
        tasks: names of the tasks to show.
    """
    head = f"{'change from the base':<37}{'change':>7}  {'95% interval':<18}verdict"
    lines = [head, "-" * 79]
    for stage, comparison in comparisons.items():
        for task, found in comparison.tasks.items():
            if task not in tasks:
                continue
            for metric in found.judged:
                one = comparison.metrics[metric]
                name = shown_metric(metric)
                interval = f"{one.low:+.3f} to {one.high:+.3f}"
                lines.append(
                    f"{stage:<16} {name:<20}{one.difference:>+7.3f}  {interval:<18}{one.verdict}"
                )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class TaskContamination:
    """One benchmark's questions in the training rows."""

    rows: int
    """Number of training rows that hold such a question."""
    questions: int
    """Number of questions in training rows."""


@dataclass(frozen=True, slots=True)
class Contamination:
    """Benchmark questions in the training rows, and the comparisons without them."""

    rows: int
    """Number of training rows that hold a question of any task."""
    tasks: dict[str, TaskContamination]
    """Counts of each task whose questions were searched for."""
    comparisons: dict[str, Comparison]
    """Comparisons by stage; empty if no question was trained on, or too few others are left."""

    @property
    def questions(self) -> int:
        """Number of questions in training rows, of all tasks."""
        return sum(task.questions for task in self.tasks.values())

    def to_json(self) -> JsonObject:
        """Return it as RUN/summary.json holds it."""
        return {
            "rows": self.rows,
            "questions": self.questions,
            "tasks": {name: dataclasses.asdict(task) for name, task in self.tasks.items()},
            "comparisons": _comparisons_to_json(self.comparisons),
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """The stages of a run, each compared with the base, and the verdict."""

    stages: tuple[Stage, ...]
    margin: float
    comparisons: dict[str, Comparison]
    """Comparisons by stage, for all but the base."""
    contamination: Contamination

    @property
    def verdict(self) -> str:
        """The verdict on the last stage; empty if there is only the base."""
        return list(self.comparisons.values())[-1].verdict if self.comparisons else ""

    @property
    def sentence(self) -> str:
        """Benefit and cost of the last stage in a sentence; empty if there is only the base."""
        return list(self.comparisons.values())[-1].sentence if self.comparisons else ""

    @property
    def verdicts(self) -> dict[str, str]:
        """Each task's own verdict on the last stage, by the task's name."""
        if not self.comparisons:
            return {}
        tasks = tasks_of(self.stages[0])
        last = list(self.comparisons.values())[-1]
        return {name: one.verdict for name, one in last.tasks.items() if name in tasks}

    def to_json(self) -> JsonObject:
        """Return the summary as RUN/summary.json holds it."""
        base = self.stages[0]["truthfulqa"]
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "margin": self.margin,
            "questions": base.data,
            "questions_sha256": base.data_sha256,
            "n": len(base.items),
            "tasks": {
                name: {
                    "label": result.label,
                    "questions": result.data,
                    "questions_sha256": result.data_sha256,
                    "n": len(result.items),
                }
                for name, result in tasks_of(self.stages[0]).items()
            },
            "stages": [_stage_to_json(stage) for stage in self.stages],
            "comparisons": _comparisons_to_json(self.comparisons),
            "contamination": self.contamination.to_json(),
        }


def summarize(
    stages: Sequence[Stage],
    margin: float,
    hits: Collection[Hit],
    searched: Sequence[str],
    cost: Cost | None = None,
) -> Summary:
    """Compare the stages of a run with its base, the first of them.

    Args:
        margin: largest loss that still counts as no tax.
        cost: margins of the cost; None: the defaults.
        hits: training rows that hold questions of the tasks.
        searched: names of the tasks whose questions were searched for.
    """
    comparisons = {
        stage.name: compare(stages[0], stage, margin=margin, cost=cost) for stage in stages[1:]
    }
    contamination = without_contaminated(hits, searched, stages, margin, cost)
    return Summary(tuple(stages), margin, comparisons, contamination)


def without_contaminated(
    hits: Collection[Hit],
    searched: Sequence[str],
    stages: Sequence[Stage],
    margin: float,
    cost: Cost | None = None,
) -> Contamination:
    """Count the questions in training rows, and compare the stages with the base without them.

    Args:
        hits, searched, cost: as for `summarize`.
        stages: the base first.
    """
    items = {name: {hit.item for hit in hits if hit.benchmark == name} for name in searched}
    counts = {
        name: TaskContamination(
            len({hit.row for hit in hits if hit.benchmark == name}), len(items[name])
        )
        for name in searched
    }
    comparisons = {}
    if any(items.values()):
        base, *others = (_without(stage, items) for stage in stages)
        if any(len(result.items) > 1 for result in tasks_of(base).values()):
            comparisons = {
                stage.name: compare(base, stage, margin=margin, cost=cost) for stage in others
            }
    return Contamination(len({hit.row for hit in hits}), counts, comparisons)


def _without(stage: Stage, places: Mapping[str, Collection[int]]) -> Stage:
    """Return the stage without some items of its tasks.

    Args:
        places: of the items to leave out, by task.
    """
    results = {}
    for name, result in stage.results.items():
        left_out = places.get(name, ())
        items = tuple(item for place, item in enumerate(result.items) if place not in left_out)
        results[name] = dataclasses.replace(result, items=items)
    # A comparison's first result needs two questions; one with fewer has no interval anyway.
    enough = sorted(results, key=lambda name: len(results[name].items) < 2)
    return dataclasses.replace(stage, results={name: results[name] for name in enough})


def _comparisons_to_json(comparisons: Mapping[str, Comparison]) -> list[JsonObject]:
    return [{"stage": name, **one.record()} for name, one in comparisons.items()]


def _stage_to_json(stage: Stage) -> JsonObject:
    figures, more = stage["truthfulqa"].figures, more_figures(stage)
    return {
        **line(stage)._asdict(),
        **{key: figures.get(key) for key in ("stderr", "calibration")},
        **({"tasks": more} if more else {}),
    }
