"""Results of benchmarks and of a run's stages, read from JSON and written to it.

Every item carries its own scores, so that a comparison, a report or an ablation reads all results
in one way. Results of earlier releases hold no scores: their task computes them from the items.
Nothing here needs mlx.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.benchmark.tasks import task_class, task_names
from forty2.errors import BenchmarkError
from forty2.files import JsonObject, read_json
from forty2.notebook import html_table

if TYPE_CHECKING:
    from forty2.benchmark.harness_samples import HarnessSamples
    from forty2.benchmark.task import Source

TOLERANCE = 1e-6
"""Largest difference between a stored mean or score and the one computed from the items."""
NOT_RECORDED = "not recorded"


@dataclass(frozen=True, slots=True)
class Item:
    """One question, problem, prompt or text with its scores."""

    record: JsonObject
    """Facts that the task recorded: the question, the reply, log-probabilities, …"""
    scores: dict[str, float]
    """Scores by metric."""
    category: str | None = None

    def to_json(self) -> JsonObject:
        """Return the record with `scores` and, if there is one, `category`."""
        category = {} if self.category is None else {"category": self.category}
        return {**self.record, **category, "scores": self.scores}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One model's result in one benchmark, with everything needed to check it."""

    benchmark: str
    """Name of its task."""
    model: str
    """The model as the user named it."""
    adapter: str | None
    seed: int | None
    """Seed of the sample and of sampled answers; None: nothing was drawn."""
    data: str
    """Name of the questions, or the path that they were read from."""
    data_sha256: str | None
    """sha256 of the questions; None: an earlier release did not record it."""
    versions: dict[str, str]
    """Device and versions: `machine.facts()`."""
    settings: JsonObject
    """Settings of the measurement."""
    figures: JsonObject
    """Means, standard errors and the task's other figures, and `n`."""
    items: tuple[Item, ...] = field(repr=False)

    @property
    def questions(self) -> str:
        """Name of the questions, for a reader."""
        return task_class(self.benchmark).title or self.data

    @property
    def model_name(self) -> str:
        """Name of the model, with its adapter's."""
        return self.model + (f" + {self.adapter}" if self.adapter else "")

    @property
    def label(self) -> str:
        """Name of the benchmark, for a reader."""
        return task_class(self.benchmark).label()

    def __str__(self) -> str:
        return task_class(self.benchmark).text(self)

    def _repr_html_(self) -> str:
        """Show names, means and standard errors in a notebook."""
        means = task_class(self.benchmark).stored_means(self.figures)
        errors = self.figures.get("stderr")
        rows = []
        for name, mean in means.items():
            error = errors.get(name) if isinstance(errors, Mapping) else None
            rows.append([name, f"{mean:.4f}", "" if error is None else f"± {error:.4f}"])
        title = f"{self.label}, {len(self.items):,} items of {self.data}: {self.model_name}"
        return html_table(title, ["metric", "mean", "standard error"], rows)

    def to_json(self) -> JsonObject:
        """Return the result as its file holds it."""
        task = task_class(self.benchmark)
        return {
            "benchmark": self.benchmark,
            "model": self.model,
            "adapter": self.adapter,
            task.data_key: self.data,
            f"{task.data_key}_sha256": self.data_sha256,
            **self.settings,
            "seed": self.seed,
            **self.figures,
            "versions": self.versions,
            "items": task.items_to_json(self.items),
        }

    @classmethod
    def from_json(cls, found: JsonObject, what: str, benchmark: str | None = None) -> Result:
        """Read a result, and check that its scores and means are those of its items.

        Args:
            found: the parsed file.
            what: name of the result for messages.
            benchmark: name of the task, if the file does not state it: stages of earlier releases
                do not.

        Raises:
            BenchmarkError: it is not a result, is damaged, or was changed.
        """
        name = benchmark or _benchmark_of(found)
        if name is None:
            raise BenchmarkError(f"{what} is not a result of a benchmark; {_REMEDY}")
        try:
            result = cls._parse(found, name)
            result._check_finite(what)
            result._check_means(what)
            result._check_scores(found, what)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, BenchmarkError):
                raise
            raise BenchmarkError(f"{what} is damaged ({error!r}); measure again") from error
        return result

    @classmethod
    def _parse(cls, found: JsonObject, name: str) -> Result:
        task = task_class(name)
        records = [record for record, _ in task.items_from_json(found["items"])]
        for record in records:
            task.identify(record)  # what a comparison reads of it is there
        items = task.items(records)
        settings = (*task.must_agree, *task.may_differ)
        used = {"benchmark", "model", "adapter", "seed", "versions", "items"}
        used |= {task.data_key, f"{task.data_key}_sha256"}
        return cls(
            benchmark=name,
            model=str(found.get("model", NOT_RECORDED)),
            adapter=found.get("adapter"),
            seed=found.get("seed"),
            data=str(found.get(task.data_key, task.title or NOT_RECORDED)),
            data_sha256=found.get(f"{task.data_key}_sha256"),
            versions=dict(found.get("versions", {})),
            settings={key: found[key] for key in settings if key in found},
            figures={k: v for k, v in found.items() if k not in used and k not in settings},
            items=items,
        )

    def _where(self, place: int, what: str) -> str:
        """Name an item in a message."""
        name = task_class(self.benchmark).identify(self.items[place].record)[0]
        return f"{what}, item {place + 1} ({name!r})"

    def _check_finite(self, what: str) -> None:
        for place, item in enumerate(self.items):
            for name, score in item.scores.items():
                if not math.isfinite(score):
                    where = self._where(place, what)
                    raise BenchmarkError(f"{where}: {name} is not finite; measure again")

    def _check_means(self, what: str) -> None:
        """Refuse stored means that differ from those of the items."""
        for name, mean in task_class(self.benchmark).stored_means(self.figures).items():
            values = [item.scores[name] for item in self.items if name in item.scores]
            found = math.fsum(values) / max(1, len(values))
            if not abs(found - mean) <= TOLERANCE:
                raise BenchmarkError(
                    f"{what}: {name} is stored as {mean:.6f}, but its items give {found:.6f}; "
                    "the file was changed: measure again"
                )

    def _check_scores(self, found: JsonObject, what: str) -> None:
        """Refuse stored scores that differ from those of the record; earlier releases stored none."""
        parsed = task_class(self.benchmark).items_from_json(found["items"])
        for place, (item, (_, stored)) in enumerate(zip(self.items, parsed, strict=True)):
            if stored is not None and not _agree(item.scores, stored):
                raise BenchmarkError(
                    f"{self._where(place, what)}: its scores do not follow from the rest of it; "
                    "the file was changed: measure again"
                )


@dataclass(frozen=True, slots=True)
class Stage:
    """Results of one model of a run: the base, the model after a phase, or the fused one."""

    name: str
    results: dict[str, Result]
    """Results by task, in the order of comparison; the verdict is over the first."""

    def __getitem__(self, task: str) -> Result:
        return self.results[task]

    def measured(self, source: Source) -> bool:
        """Return whether a result is over these questions."""
        return any(source.sha256 == result.data_sha256 for result in self.results.values())

    def without(self, task: str) -> Stage:
        """Return the stage without one of its results."""
        kept = {name: result for name, result in self.results.items() if name != task}
        return Stage(self.name, kept)

    def to_json(self) -> JsonObject:
        """Return the stage as RUN/benchmarks/STAGE.json holds it."""
        return {
            "stage": self.name,
            **{name: result.to_json() for name, result in self.results.items()},
        }

    @classmethod
    def from_json(cls, found: JsonObject, what: str) -> Stage:
        """Read a stage.

        Raises:
            BenchmarkError: it is damaged, or one of its results is.
        """
        names = [name for name in found if name in task_names()]
        if not names:
            raise BenchmarkError(f"{what} is damaged (its measurements are missing); measure again")
        for name in names:
            if not isinstance(found[name], dict):
                raise BenchmarkError(f"{what} is damaged ({name} is no object); measure again")
        results = {name: Result.from_json(found[name], f"{what}, {name}", name) for name in names}
        return cls(str(found["stage"]), results)


def read_measured(found: object, what: str) -> Result | Stage:
    """Read a parsed file of a benchmark's result or of a run's stage.

    Args:
        what: name of the file for messages.

    Raises:
        BenchmarkError: it is neither, or damaged.
    """
    if not isinstance(found, dict):
        raise BenchmarkError(f"{what} is not a result of a benchmark; {_REMEDY}")
    return Stage.from_json(found, what) if "stage" in found else Result.from_json(found, what)


Measurable = Result | Stage | Mapping[str, object] | str | Path
"""A result or a run's stage, parsed JSON of one, or the JSON file that holds it; or a folder or file of
samples that lm-evaluation-harness wrote, or a log of Inspect."""


def as_measured(given: Measurable, what: str) -> Result | Stage | HarnessSamples:
    """Return a result, stage or samples that are given themselves, parsed, or by their file.

    Args:
        what: name of it for messages, unless it is a file.

    Raises:
        BenchmarkError: it is none of these, or damaged.
        RunError, DataError: the file cannot be read.
    """
    from forty2.benchmark.harness_samples import is_harness, read_samples
    from forty2.benchmark.inspect_logs import is_inspect, read_log, refuse_binary_log

    if isinstance(given, Result | Stage):
        return given
    if isinstance(given, str | Path):
        path = Path(given)
        if is_harness(path):
            return read_samples(path)
        refuse_binary_log(path)
        given, what = read_json(path), str(given)
    return read_log(given, what) if is_inspect(given) else read_measured(given, what)


_REMEDY = (
    "give a JSON file that forty2 benchmark wrote, one of RUN/benchmarks, a folder of "
    "lm-evaluation-harness's samples, or a JSON log of Inspect"
)


def _benchmark_of(found: JsonObject) -> str | None:
    """Return the task's name; results of the behaviour gates of earlier releases do not state it."""
    name = found.get("benchmark", "behaviour" if "leak_rate" in found else None)
    return name if isinstance(name, str) and name in task_names() else None


def _agree(scores: Mapping[str, float], stored: Mapping[str, float]) -> bool:
    return scores.keys() == stored.keys() and all(
        abs(stored[name] - score) <= TOLERANCE for name, score in scores.items()
    )
