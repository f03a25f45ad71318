"""The record of an ablation, as its report reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forty2.files import JsonObject
from forty2.report.json_records import visible
from forty2.report.metrics import Score
from forty2.report.records import read_change, read_provenance
from forty2.report.run_types import ChangeRecord, ProvenanceRecord


@dataclass(frozen=True, slots=True)
class VariantChange:
    """The paired changes from one variant to another, by metric."""

    variant: str
    against: str
    changes: dict[str, ChangeRecord]
    verdict: str = ""
    """The verdict on benefit and cost; "": an earlier release judged each metric by itself alone."""
    sentence: str = ""
    """Benefit and cost in a sentence."""


@dataclass(frozen=True, slots=True)
class QuestionsRecord:
    """The questions of TruthfulQA that every variant was asked."""

    name: str
    sha256: str
    n: int
    drawn_with: int | None
    """Seed that drew them; None: all questions were asked."""


@dataclass(frozen=True, slots=True)
class DosePoint:
    """The variants of one dose: a number of steps of the SFT phase."""

    dose: int
    variant: str
    after_preference: str | None
    """The variant with the preference phase after it; None: the recipe has none."""


@dataclass(frozen=True, slots=True)
class DoseRecord:
    """The doses of a dose-response experiment, and its finding."""

    phase: str
    preference: str | None
    points: list[DosePoint]
    sentence: str


@dataclass(frozen=True, slots=True)
class AblationRecord:
    """The outcome of an ablation."""

    name: str
    seeds: list[int]
    provenance: ProvenanceRecord
    recipe: str
    margin: float
    """Largest loss that counts as no tax."""
    questions: QuestionsRecord | None
    """None: TruthfulQA was not measured."""
    notes: list[str]
    insight: str | None
    """The answer to whether DPO repairs what SFT alone costs, in one sentence."""
    dose: DoseRecord | None
    """None: the ablation is of phases."""
    variants: dict[str, dict[str, Score]]
    """Scores by metric, by variant; the base first."""
    changes: list[VariantChange]


def read_ablation(record: Mapping[str, object]) -> AblationRecord:
    """Read the record of an ablation: the content of ablation.json."""
    shown: JsonObject = visible({key: record[key] for key in record if key != "items"})
    questions, insight = shown.get("questions"), shown["insight"]
    return AblationRecord(
        name=str(shown["name"]),
        seeds=[int(seed) for seed in shown["seeds"]],
        provenance=read_provenance(shown["run"]),
        recipe=str(shown["recipe"]),
        margin=float(shown["margin"]),
        questions=None
        if questions is None
        else QuestionsRecord(
            name=str(questions["name"]),
            sha256=str(questions["sha256"]),
            n=int(questions["n"]),
            drawn_with=questions.get("drawn_with"),
        ),
        notes=[str(note) for note in shown["notes"]],
        insight=None if not insight else str(insight["sentence"]),
        dose=_dose(shown.get("dose")),
        variants={
            variant: {
                metric: Score(float(score["value"]), float(score["low"]), float(score["high"]))
                for metric, score in scores.items()
            }
            for variant, scores in shown["variants"].items()
        },
        changes=[
            VariantChange(
                str(change["variant"]),
                str(change["against"]),
                {metric: read_change(change) for metric, change in change["metrics"].items()},
                str(change.get("verdict") or ""),
                str(change.get("sentence") or ""),
            )
            for change in shown["changes"]
        ],
    )


def _dose(record: JsonObject | None) -> DoseRecord | None:
    """Read the doses; earlier releases had none."""
    if record is None:
        return None
    preference = record["preference"]
    return DoseRecord(
        phase=str(record["phase"]),
        preference=None if preference is None else str(preference),
        points=[
            DosePoint(int(one["dose"]), str(one["variant"]), one["after_preference"])
            for one in record["points"]
        ],
        sentence=str(record["sentence"]),
    )
