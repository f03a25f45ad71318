"""The stages of a run: their measurement, their table, and their comparison with the base.

A stage is the base model, the model after a phase, or the fused one. Each is measured on the run's
own held-out rows, in the tasks of the recipe's `benchmark:`, in the behaviour gates, in the perplexity
of neutral prose and in its divergence from the base. The verdict is over the held-out rows, or over
the first of those tasks where there are none, and over the cost (`verdict`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from forty2.benchmark.compare import Comparison, compare
from forty2.benchmark.metrics import shown_metric
from forty2.benchmark.partial_results import PartialResults
from forty2.benchmark.regression import bucket_cells, buckets
from forty2.benchmark.results import Result, Stage
from forty2.benchmark.runner import measure as measure_task
from forty2.benchmark.stage_scores import ALWAYS, metric_names
from forty2.benchmark.task import Task
from forty2.benchmark.tasks import task_class, task_names
from forty2.benchmark.tasks.behaviour import Behaviour
from forty2.benchmark.tasks.divergence import Base, Divergence
from forty2.benchmark.tasks.held_out import (
    CHAT_LOSS,
    LENGTH,
    PAIRS,
    PASSED,
    RATINGS,
    STOPS,
    HeldOut,
)
from forty2.benchmark.tasks.perplexity import Perplexity
from forty2.benchmark.tasks.truthfulqa import TruthfulQA
from forty2.benchmark.truthfulqa_questions import Questions, load_questions, sample
from forty2.benchmark.verdict import STYLE
from forty2.data.checks.contamination import Benchmark as Searched
from forty2.data.checks.contamination import Hit
from forty2.errors import BenchmarkError, DataError
from forty2.files import JsonObject, read_sealed
from forty2.model.loading import LoadedModel
from forty2.progress import Progress, silent
from forty2.recipe.schema import Benchmark, BenchmarkTask, Cost


class Loaded(NamedTuple):
    """A task and the questions that it loaded."""

    task: Task[Any]
    questions: Any


@dataclass(frozen=True, slots=True)
class Measurement:
    """The tasks of a run with their questions, the same at every stage."""

    truthfulqa: Questions | None
    """None: not measured."""
    more: dict[str, Loaded]
    """The recipe's other tasks, by name."""
    n: int | None
    """`benchmark.n` of the recipe."""
    seed: int

    def settings(self, stage: str) -> JsonObject:
        """Return the settings that must be equal for a stage's measurement to resume."""
        more = {
            f"{name}_sha256": task.source(questions).sha256
            for name, (task, questions) in self.more.items()
        }
        if self.truthfulqa is not None:
            more["questions_sha256"] = self.truthfulqa.sha256
        return {"stage": stage, **more}

    @property
    def questions(self) -> str:
        """Name of TruthfulQA's questions; empty: they are not measured."""
        return self.truthfulqa.name if self.truthfulqa is not None else ""

    @property
    def tasks(self) -> dict[str, Loaded]:
        """All tasks of the recipe, by name."""
        if self.truthfulqa is None:
            return dict(self.more)
        return {
            "truthfulqa": Loaded(TruthfulQA(seed=self.seed), self.truthfulqa),
            **self.more,
        }

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
        return Measurement(None, {}, None, seed)
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


def questions_of(benchmark: Benchmark, seed: int) -> Questions | None:
    """Read TruthfulQA's questions, and draw the sample: the same for every stage of a run.

    Returns:
        None if the recipe does not name TruthfulQA.
    """
    entry = next((entry for entry in benchmark.tasks if entry.task == "truthfulqa"), None)
    if entry is None:
        return None
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
    if entry.data is None and not _has_own_data(task_class(entry.task)):
        raise BenchmarkError(f"{where}: needs its data; write {{task: {entry.task}, data: PATH}}")
    return task_class(entry.task)


def _has_own_data(kind: type[Task[Any]]) -> bool:
    """Return whether a task has questions of its own, for a recipe that names none."""
    return any(one.name == "data" and one.default is None for one in dataclasses.fields(kind))


def _fields(kind: type[Task[Any]]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


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
    facts_alone = measurement.truthfulqa is None
    for task in (
        Behaviour(n=n, seed=seed, facts_alone=facts_alone),
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


# --- a run's summary ------------------------------------------------------------------------------


_FIGURES: Mapping[str, tuple[str, Callable[[JsonObject], float | None]]] = {
    "mc1": ("truthfulqa", lambda figures: figures["mc1"]),
    "mc2": ("truthfulqa", lambda figures: figures["mc2"]),
    "leak_rate": ("behaviour", lambda figures: figures["leak_rate"]),
    "facts_right": ("behaviour", lambda figures: figures["right_rate"]),
    "preference": ("behaviour", lambda figures: _over_gates(figures, "preference")),
    "margin": ("behaviour", lambda figures: _over_gates(figures, "margin")),
    "perplexity": ("perplexity", lambda figures: figures["perplexity"]),
    "kl": ("divergence", lambda figures: figures["kl"]),
}
"""Figures of a stage that stand in the table, each with its task."""


def _over_gates(figures: JsonObject, name: str) -> float | None:
    """Return a figure over all gates; None: only plain facts were asked."""
    return figures[name]["all"] if len(figures["gates"]) > 1 else None


def line(stage: Stage) -> dict[str, float]:
    """Return the figures of one stage by name, those that were measured; KL is in nats a token."""
    found = {
        name: value(stage[task].figures)
        for name, (task, value) in _FIGURES.items()
        if task in stage.results
    }
    return {name: value for name, value in found.items() if value is not None}


def held_out_means(stage: Stage) -> dict[str, float]:
    """Return the means over the held-out rows, by metric; empty: they were not measured."""
    if "held_out" not in stage.results:
        return {}
    return HeldOut.stored_means(stage["held_out"].figures)


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
        if name not in ("truthfulqa", "held_out"):
            figures.update({shown[m]: means[m] for m in task.judged if m in means})
    return figures


_OWN_COLUMNS = {
    PAIRS: ("pairs", ".1%"),
    RATINGS: ("ratings", ".1%"),
    CHAT_LOSS: ("chat loss", ".3f"),
    PASSED: ("passed", ".1%"),
    STOPS: ("stopped", ".1%"),
    LENGTH: ("tokens", ".1f"),
}
_COLUMNS = {
    "mc1": ("MC1", ".3f"),
    "mc2": ("MC2", ".3f"),
    "facts_right": ("facts", ".1%"),
    "leak_rate": ("leaks", ".1%"),
    "preference": ("prefers", ".1%"),
    "margin": ("margin", ".3f"),
    "perplexity": ("perplexity", ".2f"),
    "kl": ("KL", ".2g"),
}


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
        chosen = {key: one for key, one in _OWN_COLUMNS.items() if key in own[0]}
        rows = [["your held-out rows", *(name for name, _ in chosen.values())]]
        for stage, means in zip(stages, own, strict=True):
            cells = [format(means[key], form) for key, (_, form) in chosen.items()]
            rows.append([stage.name, *cells])
        tables.append(rows)
    if cells_of_buckets := bucket_cells(stages):
        tables.append(cells_of_buckets)
    shown = {key: one for key, one in _COLUMNS.items() if key in line(stages[0])}
    more = list(more_figures(stages[0]))
    rows = [["stage", *(name for name, _ in shown.values()), *more]]
    for stage in stages:
        one, others = line(stage), more_figures(stage)
        cells = [format(one[key], form) for key, (_, form) in shown.items()]
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
        base = next(iter(self.stages[0].results.values()))
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "margin": self.margin,
            "questions": base.data,
            "questions_sha256": base.data_sha256,
            "n": (list(self.comparisons.values())[-1].n if self.comparisons else 0)
            or len(base.items),
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
            "buckets": [bucket.to_json() for bucket in buckets(self.stages)],
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
    more, own = more_figures(stage), held_out_means(stage)
    truthfulqa = stage.results.get("truthfulqa")
    figures = truthfulqa.figures if truthfulqa is not None else {}
    return {
        "stage": stage.name,
        **line(stage),
        **{key: figures.get(key) for key in ("stderr", "calibration")},
        **({"tasks": more} if more else {}),
        **({"held_out": own} if own else {}),
        **({"style": _style_to_json(stage)} if STYLE in stage.results else {}),
    }


def _style_to_json(stage: Stage) -> JsonObject:
    """Return each metric of the replies' style, and the perplexity, with interval and caution."""
    figures = stage[STYLE].figures
    weak = task_class(STYLE).cautions(figures)
    found = {
        name: {"value": mean, **figures["intervals"][name], "caution": weak.get(name, "")}
        for name, mean in figures["means"].items()
    }
    if "perplexity" in stage.results:
        neutral = stage["perplexity"].figures
        if "interval" in neutral:  # earlier releases computed none
            value = {"value": neutral["perplexity"], **neutral["interval"], "caution": ""}
            found["perplexity of neutral text"] = value
    return found
