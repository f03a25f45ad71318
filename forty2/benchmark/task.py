"""The base class of benchmarks, used by the runner, by comparisons and by a run's stages.

A task is a frozen dataclass: its fields are the settings that a user may give, its methods load the
items, score them and summarise the scores; class attributes and class methods say how to read a
result. To add a benchmark, put one file with one subclass into `tasks/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

from forty2.benchmark.results import Item
from forty2.files import JsonObject

if TYPE_CHECKING:
    from forty2.benchmark.partial_results import PartialResults
    from forty2.benchmark.results import Result
    from forty2.model.loading import LoadedModel

Questions = TypeVar("Questions")
"""The questions of a task, as it loads them."""
Report = Callable[[int, int, Mapping[str, object]], None]
"""Function called as items are scored, with the number done, the number in all, and figures."""


class Metric(NamedTuple):
    """Range of an item's score in one metric, and the meaning of a change."""

    low: float = 0.0
    high: float = 1.0
    """Bounds of a score; infinite if it has none."""
    better: Literal["higher", "lower", "neither"] = "higher"
    """Direction that is better; neither: a change is no gain and no loss, and is not compared."""


SHARE = Metric()
BATCH_SIZE = 16
"""Answers generated at a time."""


class Source(NamedTuple):
    """Name, hash and number of the questions."""

    name: str
    sha256: str
    n: int
    """Items to score."""


@dataclass(frozen=True, kw_only=True)
class Task(ABC, Generic[Questions]):
    """A benchmark with its settings."""

    seed: int | None = None
    """Seed of the sample and of sampled answers."""

    name: ClassVar[str]
    """Name of the task, of its module and of its result."""
    title: ClassVar[str] = ""
    """Name of the questions for a reader; empty: the data's name."""
    data_key: ClassVar[str] = "data"
    """Key of the data's name in a result; its hash has `_sha256` after it."""
    judged: ClassVar[tuple[str, ...]]
    """Metrics that the verdict is over; the others are parts of them, or additional."""
    must_agree: ClassVar[tuple[str, ...]] = ()
    """Settings that must be equal in results that are compared."""
    may_differ: ClassVar[tuple[str, ...]] = ()
    """The other settings: the items themselves show whether they were the same."""
    place_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys of a record that say where an item came from; they may differ between two runs."""
    category_key: ClassVar[str | None] = None
    """Key of an item's category in its record."""
    category_metric: ClassVar[str | None] = None
    """Metric whose change is reported by category."""

    # --- measuring ---

    @abstractmethod
    def load(self) -> Questions:
        """Read the questions, and draw the sample.

        Raises:
            BenchmarkError: the questions are unusable; the message says where.
        """

    @abstractmethod
    def source(self, questions: Questions) -> Source:
        """Return name, hash and number of the questions."""

    def question_texts(self, questions: Questions) -> Sequence[Sequence[str]] | None:
        """Return the texts of each item that must not be in training rows, in the items' order.

        An item's question comes first; the others are its answers and other forms of it. None:
        training rows are not searched for this benchmark, and the report says so.
        """
        return None

    def settings(self, questions: Questions, loaded: LoadedModel) -> JsonObject:
        """Return the settings of the measurement, as JSON; it resumes only with equal ones."""
        return {}

    def notes(self, questions: Questions, items: Sequence[Item]) -> JsonObject:
        """Return further facts for the result's reader, as JSON."""
        return {}

    @abstractmethod
    def score(
        self,
        loaded: LoadedModel,
        questions: Questions,
        partial: PartialResults,
        report: Report,
    ) -> list[JsonObject]:
        """Score the items.

        Args:
            partial: holds records of items that were scored before a stop, and takes new ones.

        Returns:
            A record of each item, as JSON, without its scores.

        Raises:
            BenchmarkError: a score is not finite.
        """

    @classmethod
    @abstractmethod
    def figures(cls, items: Sequence[Item]) -> JsonObject:
        """Compute means, standard errors and other figures of scored items, as JSON."""

    # --- reading a result ---

    @classmethod
    def label(cls) -> str:
        """Return the benchmark's name for a reader."""
        return cls.title or cls.name

    @classmethod
    def scores(cls, record: JsonObject) -> dict[str, float]:
        """Compute an item's scores by metric from its record; NaN where the record is not finite.

        A task in which a score depends on the other items, too, has `items` of its own instead.

        Raises:
            ValueError, LookupError, TypeError: the record is damaged.
        """
        raise NotImplementedError(cls.name)

    @classmethod
    @abstractmethod
    def identify(cls, record: JsonObject) -> tuple[str, object]:
        """Return an item's name, and its further facts that must agree between compared results."""

    @classmethod
    def match_key(cls, record: JsonObject) -> str | None:
        """Return what tells an item from all others, in whatever data it is; None: too little is recorded."""
        return None

    @classmethod
    @abstractmethod
    def stored_means(cls, figures: JsonObject) -> dict[str, float]:
        """Return the means in a result's figures, by metric; they must equal those of its items."""

    @classmethod
    def metric(cls, name: str) -> Metric:
        """Return range and direction of a metric."""
        return SHARE

    @classmethod
    def cautions(cls, figures: JsonObject) -> dict[str, str]:
        """Return what a reader must know beside a metric's number, by metric; most need nothing."""
        return {}

    @classmethod
    def order(cls, names: Sequence[str]) -> list[str]:
        """Sort metrics as a comparison shows them: those of the verdict first."""
        return [*(n for n in cls.judged if n in names), *(n for n in names if n not in cls.judged)]

    @classmethod
    def items(cls, records: Iterable[JsonObject]) -> tuple[Item, ...]:
        """Score the records of all items."""
        return tuple(Item(record, cls.scores(record), cls._category(record)) for record in records)

    @classmethod
    def items_to_json(cls, items: Sequence[Item]) -> JsonObject | list[JsonObject]:
        """Return the items as a result's file holds them."""
        return [item.to_json() for item in items]

    @classmethod
    def items_from_json(cls, found: object) -> list[tuple[JsonObject, dict[str, float] | None]]:
        """Read each item's record and stored scores; None: an earlier release stored none."""
        return [cls._split(cast(JsonObject, item)) for item in cast(Iterable[object], found)]

    @classmethod
    def _split(cls, item: JsonObject) -> tuple[JsonObject, dict[str, float] | None]:
        """Split a stored item into its record and its scores."""
        added = {"scores"} if cls.category_key == "category" else {"scores", "category"}
        return {key: value for key, value in item.items() if key not in added}, item.get("scores")

    @classmethod
    def _category(cls, record: JsonObject) -> str | None:
        return None if cls.category_key is None else str(record[cls.category_key])

    @classmethod
    def text(cls, result: Result) -> str:
        """Format a result for the terminal."""
        lines = [f"{result.figures['n']} questions"]
        for name, mean in cls.stored_means(result.figures).items():
            lines.append(f"{name:<18}{mean:.4f}")
        return "\n".join(lines)


def as_share(value: object) -> float:
    """Return 1 for true and 0 for false.

    Raises:
        ValueError: it is neither.
    """
    if value not in (True, False):
        raise ValueError(f"{value!r} is neither true nor false")
    return 1.0 if value else 0.0


def with_error(value: float, error: float | None) -> str:
    """Format a mean, with its standard error if there is one, in columns."""
    return f"{value:.4f} ± {error:.4f}" if error is not None else f"{value:.4f}         "


def answers_text(figures: JsonObject, metrics: Sequence[str]) -> str:
    """Format the figures of a benchmark that generates, for the terminal."""
    return "\n".join(
        [
            f"{figures['n']} questions",
            *(f"{m:<18}{with_error(figures[m], figures['stderr'][m])}" for m in metrics),
            f"{'stopped':<18}{figures['stop_rate']:.1%} of answers, the others cut at the limit",
        ]
    )
