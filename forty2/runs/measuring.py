"""Measuring a run's stages: the base, the model after each phase, and the fused model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from forty2.benchmark.partial_results import PartialResults, partial_path
from forty2.benchmark.questions import Questions
from forty2.benchmark.suite import measure, questions_of
from forty2.benchmark.tasks.divergence import Base, base_of
from forty2.data.checks.contamination import ContaminationFinder
from forty2.files import JsonObject, read_sealed, write_json, write_sealed
from forty2.model.loading import LoadedModel, load
from forty2.recipe.schema import Benchmark
from forty2.runs.context import RunContext
from forty2.runs.phase_data import PhaseData
from forty2.runs.records import ContaminationRecord

CONTAMINATION = "contamination.json"


class StageMeasurer:
    """Measures the stages of one run on the same questions, and against the same base."""

    def __init__(self, run: RunContext, benchmark: Benchmark) -> None:
        self._run, self._benchmark = run, benchmark
        self.questions = questions_of(benchmark, run.recipe.seed)
        self._base: Base | None = None

    def contamination_finder(self) -> ContaminationFinder:
        """A finder of these questions in training rows."""
        items = self.questions.items
        return ContaminationFinder([(q.question, *q.mc1.choices, *q.mc2.choices) for q in items])

    def measure_base(self, loaded: LoadedModel) -> JsonObject:
        """Measure the base model, which must be bare: the other stages are compared with it."""
        self._base = base_of(loaded, self._run.provenance.model_sha256, self._benchmark.n)
        return self._measure("base", loaded, None)

    def measure(self, stage: str, loaded: LoadedModel, adapter: Path) -> JsonObject:
        """Measure a model with the adapter that it carries."""
        return self._measure(stage, loaded, adapter)

    def measure_folder(self, stage: str, folder: Path) -> JsonObject:
        """Measure the model in a folder."""
        return self._measure(stage, None, None, folder)

    def _measure(
        self,
        stage: str,
        loaded: LoadedModel | None,
        adapter: Path | None,
        folder: Path | None = None,
    ) -> JsonObject:
        """Measure a model, or the one in a folder; an earlier measurement is read back."""
        assert self._base is not None
        file = self._run.path / "benchmarks" / f"{stage.replace(' ', '-')}.json"
        if file.exists():
            partial_path(file).unlink(missing_ok=True)
            return read_sealed(file)
        loaded = loaded or load(str(folder))
        loaded.model.eval()
        settings = {"stage": stage, "questions_sha256": self.questions.sha256}
        with PartialResults.open(file, settings, resume=True) as partial:
            measured: JsonObject = measure(
                loaded,
                self.questions,
                self._benchmark.n,
                self._base,
                adapter=str(adapter) if adapter is not None else None,
                seed=self._run.recipe.seed,
                stage=stage,
                kept=partial,
                progress=self._run.progress,
            )
            partial.finish(measured, write_sealed)
        return measured


def write_contamination(path: Path, data: Mapping[str, PhaseData], questions: Questions) -> None:
    """Write down which training rows hold which of the benchmark's questions."""
    record = ContaminationRecord(
        hits=tuple((name, hit) for name, part in data.items() for hit in part.hits),
        unread_phases=tuple(name for name, part in data.items() if part.source is None),
        questions=questions.name,
    )
    write_json(path / CONTAMINATION, record.to_json())
