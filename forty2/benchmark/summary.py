"""The summary of a run: its stages, each compared with the base and with the one before it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from forty2.benchmark.compare import Comparison, compare
from forty2.benchmark.regression import buckets
from forty2.benchmark.results import Stage
from forty2.benchmark.stage_tables import figures_of, held_out_means, more_figures, tasks_of
from forty2.benchmark.tasks import task_class
from forty2.benchmark.verdict import STYLE
from forty2.data.checks.contamination import Hit
from forty2.files import JsonObject
from forty2.recipe.schema import Cost


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
    steps: dict[str, Comparison]
    """Comparisons with the stage before, by stage, for all but the base and the one after it."""

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
            "steps": _comparisons_to_json(self.steps),
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
    steps = {
        after.name: compare(before, after, margin=margin, cost=cost)
        for before, after in itertools.pairwise(stages[1:])
    }
    return Summary(tuple(stages), margin, comparisons, contamination, steps)


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
    # of TruthfulQA, beside its figures, as long as there was no other benchmark
    shape = stage.results["truthfulqa"].figures if "truthfulqa" in stage.results else {}
    return {
        "stage": stage.name,
        **figures_of(stage),
        **{key: shape.get(key) for key in ("stderr", "calibration")},
        **({"tasks": more} if more else {}),
        **({"held_out": own} if own else {}),
        **({"style": _style_to_json(stage)} if STYLE in stage.results else {}),
    }


def _style_to_json(stage: Stage) -> JsonObject:
    """Return each metric of the replies' style, and the perplexity, with interval and caution."""
    figures = stage[STYLE].figures
    weak = task_class(STYLE).cautions(figures)
    metrics = {
        name: {"value": mean, **figures["intervals"][name], "caution": weak.get(name, "")}
        for name, mean in figures["means"].items()
    }
    if "perplexity" in stage.results:
        neutral = stage["perplexity"].figures
        if "interval" in neutral:  # earlier releases computed none
            value = {"value": neutral["perplexity"], **neutral["interval"], "caution": ""}
            metrics["perplexity of neutral text"] = value
    return metrics
