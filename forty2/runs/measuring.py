"""Measuring a run's stages: the base, the model after each phase, and the fused model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from forty2.benchmark.partial_results import PartialResults, partial_path
from forty2.benchmark.results import Stage
from forty2.benchmark.stages import load_measurement, measure, measure_held_out, read_stage
from forty2.benchmark.tasks.divergence import Base, base_of
from forty2.benchmark.tasks.held_out import HeldOut, HeldOutRows, base_logps
from forty2.data.checks.contamination import ContaminationFinder
from forty2.files import write_json, write_sealed
from forty2.model.chat_template import TemplateSettings
from forty2.model.loading import LoadedModel, load
from forty2.recipe.schema import Benchmark
from forty2.runs.context import RunContext
from forty2.runs.phase_data import PhaseData
from forty2.runs.records import ContaminationRecord

CONTAMINATION = "contamination.json"
_OTHER_ROWS = "held-out rows or eval prompts are others than when it was measured, so that they are measured again"


class StageMeasurer:
    """Measures the stages of one run on the same rows and questions, and against the same base."""

    def __init__(self, run: RunContext, benchmark: Benchmark | None) -> None:
        """Read the questions of the benchmarks.

        Args:
            benchmark: what is measured beside the held-out rows and what they cost; None: nothing.
        """
        self._run = run
        self._measurement = load_measurement(benchmark, run.recipe.seed)
        self._searched = self._measurement.benchmarks()
        self._base: Base | None = None
        self._rows: HeldOutRows | None = None
        self._base_logps: dict[int, list[float]] | None = None

    def take_held_out(self, rows: HeldOutRows | None) -> None:
        """Take the held-out rows, before the base is measured; None: there are none."""
        self._rows = rows

    def contamination_finder(self) -> ContaminationFinder:
        """Make a finder of all tasks' questions in training rows."""
        return ContaminationFinder(self._searched)

    def write_contamination(self, data: Mapping[str, PhaseData]) -> None:
        """Write contamination.json: the training rows that hold questions of the tasks.

        Args:
            data: by phase, read with the finder.
        """
        record = ContaminationRecord(
            hits=tuple((name, hit) for name, part in data.items() for hit in part.hits),
            unread_phases=tuple(name for name, part in data.items() if part.source is None),
            searched=tuple(benchmark.name for benchmark in self._searched),
        )
        write_json(self._run.path / CONTAMINATION, record.to_json())

    def has_measured(self, stage: str) -> bool:
        """Return whether a stage is measured, and on the held-out rows as they are now."""
        file = measurement_path(self._run.path, stage)
        return file.exists() and self._is_of_rows(read_stage(file))

    def _is_of_rows(self, stage: Stage) -> bool:
        if self._rows is None:
            return True
        held_out = HeldOut(rows=self._rows, base=self._base_logps)
        return stage.measured(held_out.source(held_out.rows))

    def measure_base(self, loaded: LoadedModel) -> Stage:
        """Measure the base model, without an adapter: the other stages are compared with it."""
        self._base = base_of(loaded, self._run.base_key, self._measurement.n, self._run.progress)
        stage = self._measure("base", loaded, None)
        if self._rows is not None:
            self._base_logps = base_logps(stage["held_out"])
        return stage

    def measure(self, stage: str, loaded: LoadedModel, adapter: Path) -> Stage:
        """Measure a model with the adapter that it carries."""
        return self._measure(stage, loaded, adapter)

    def measure_folder(self, stage: str, folder: Path) -> Stage:
        """Measure the model in a folder."""
        return self._measure(stage, None, None, folder)

    def _measure(
        self,
        stage: str,
        loaded: LoadedModel | None,
        adapter: Path | None,
        folder: Path | None = None,
    ) -> Stage:
        """Measure a model, or the one in a folder; read the measurement if it was made before."""
        assert self._base is not None
        file = measurement_path(self._run.path, stage)
        before = read_stage(file) if file.exists() else None
        if before is not None and self._is_of_rows(before):
            partial_path(file).unlink(missing_ok=True)
            return before
        held_out = None
        if self._rows is not None:
            held_out = HeldOut(rows=self._rows, base=self._base_logps)
        loaded = loaded or load(
            str(folder), template=TemplateSettings(date=self._run.template.date)
        )
        loaded.model.eval()
        settings = self._measurement.settings(stage)
        if self._rows is not None:
            settings["held_out_sha256"] = self._rows.sha256()
        named = str(adapter) if adapter is not None else None
        with PartialResults.open(file, settings, resume=True) as partial:
            if before is not None:  # an earlier release, or with other held-out rows
                assert held_out is not None
                self._run.progress(stage, 0, 1, {"notice": f"{stage}: {_OTHER_ROWS}"})
                measured = measure_held_out(
                    before, loaded, held_out, named, partial, self._run.progress
                )
            else:
                measured = measure(
                    loaded,
                    self._measurement,
                    self._base,
                    held_out,
                    stage=stage,
                    adapter=named,
                    partial=partial,
                    progress=self._run.progress,
                )
            partial.finish(measured.to_json(), write_sealed)
        return measured


def measurement_path(path: Path, stage: str) -> Path:
    """Return the file of a stage's measurement in a run folder."""
    return path / "benchmarks" / f"{stage.replace(' ', '-')}.json"
