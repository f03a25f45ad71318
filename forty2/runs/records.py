"""A run's records of itself, as typed values; each is JSON in one file of the run folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from forty2.data.checks.contamination import Hit
from forty2.files import JsonObject


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """The recipe, model and versions that a run was started with.

    It is in run.json, with the version of the format and the time of the start.
    """

    name: str
    """The recipe's name."""
    model: str
    """The base model as the recipe names it."""
    model_path: str
    """Absolute path of the folder that it was loaded from."""
    model_sha256: str
    versions: dict[str, str]
    """Device, BLAS, package versions and the package's revision."""
    init_from: str | None = None
    """Folder of the adapter that the run went on from; None: it began with a new one."""
    init_from_sha256: str | None = None
    """Hash of that adapter's weights and configuration."""

    def to_json(self) -> JsonObject:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: JsonObject) -> Provenance:
        """Read run.json; keys that are not provenance are left out."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: record[name] for name in names if name in record})


@dataclass(frozen=True, kw_only=True)
class PhaseRecord:
    """A finished phase; phase.json in its folder."""

    name: str
    objective: str
    rows: int
    valid_rows: int
    steps: int
    exposures: float
    """Average uses of each row, counted from the rows that the steps drew."""
    kept_step: int
    """The step whose adapter the folder holds."""
    spared: JsonObject
    """Shortcuts taken in computing log-probabilities; the name is the key of phase.json."""
    shortened: list[str]
    """Origins of rows whose prompt lost its beginning to max_length."""
    dropped: list[str]
    """Origins of rows whose response did not fit into max_length."""
    metrics: dict[str, float]
    """Metrics of the last step."""
    valid: dict[str, float]
    """Metrics of the evaluation at `kept_step`; empty without validation rows."""
    median_tokens: float
    system: str = ""
    """System prompt of more than half of the training rows, which a chat takes over; "": none."""
    coverage: dict[str, float] = field(default_factory=dict)
    """Passes over the supervised tokens, of its own rows and of each source that it replays."""
    warnings: list[str] = field(default_factory=list)
    """Warnings about the use of its rows."""
    replayed: list[JsonObject] = field(default_factory=list)
    """Sources that it replays, each with its rows and the shares that they make up."""

    def to_json(self) -> JsonObject:
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class ContaminationRecord:
    """Training rows that hold questions of the benchmarks; contamination.json."""

    hits: tuple[tuple[str, Hit], ...]
    """Hits, each with the name of its phase."""
    unread_phases: tuple[str, ...]
    """Phases whose rows were prepared as ids, so that their texts cannot be searched."""
    searched: tuple[str, ...]
    """Names of the tasks whose questions were searched for."""

    def to_json(self) -> JsonObject:
        hits = [
            {
                "phase": phase,
                "row": hit.row,
                "task": hit.benchmark,
                "item": hit.item,
                "how": hit.how,
            }
            for phase, hit in self.hits
        ]
        return {
            "hits": hits,
            "unread_phases": list(self.unread_phases),
            "searched": list(self.searched),
        }

    @classmethod
    def from_json(cls, record: JsonObject) -> ContaminationRecord:
        """Read contamination.json; earlier releases searched for TruthfulQA's questions alone."""
        return cls(
            hits=tuple(
                (h["phase"], Hit(h["row"], h.get("task", "truthfulqa"), h["item"], h["how"]))
                for h in record["hits"]
            ),
            unread_phases=tuple(record["unread_phases"]),
            searched=tuple(record.get("searched", ["truthfulqa"])),
        )
