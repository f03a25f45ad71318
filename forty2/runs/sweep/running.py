"""Running a sweep: each configuration with every seed, by one process or several.

Each process takes the next configuration that no other one has locked. A configuration whose
training breaks off, since its loss is not finite, say, ends there, and the sweep goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from forty2.benchmark.recipe_tasks import check_tasks
from forty2.benchmark.stages import read_stage
from forty2.errors import RecipeError, RunError, TrainingError, first_line
from forty2.files import make_folder, remove_leftovers, write_errors, write_text
from forty2.progress import Progress, bars, draws_bars
from forty2.recipe.grid import Grid, read_grid
from forty2.recipe.places import changed
from forty2.recipe.reading import to_yaml
from forty2.recipe.schema import Recipe
from forty2.run_paths import run_path
from forty2.runs.context import provenance_of
from forty2.runs.folder import now, try_lock
from forty2.runs.replicates import check_seeds, with_same_questions
from forty2.runs.sweep.checking import check_metrics, check_rows
from forty2.runs.sweep.configurations import (
    Configuration,
    RecipeSource,
    check_ranges,
    configuration_name,
    configurations,
    configure,
)
from forty2.runs.sweep.folder import (
    RECIPE,
    STATES,
    ConfigurationFolder,
    SweepRecord,
    check_usable,
    configuration_folders,
    is_confirmed,
    locked,
    read_record,
    write_record,
)
from forty2.runs.sweep.metrics import measurements, objective_of
from forty2.runs.sweep.results import SweepResult, last_measurement, show_sweep
from forty2.runs.sweep.shared_work import SharedWork, shared_lengths, untouched_length
from forty2.runs.sweep.study import Study, need_optuna
from forty2.training.processes import launched

SEEDS = (42, 43, 44)
FEWEST_TO_STOP = 3
"""Finished configurations that the median rule needs."""


@draws_bars
def sweep(
    recipe: str | Path | Mapping[str, object],
    grid: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    early_stop: bool = False,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> SweepResult:
    """Train every configuration of a grid with every seed, measure it, and name a winner, if any.

    Work that configurations share is done once: the base's measurement, first phases that are the
    same, reference log-probabilities, the output of frozen blocks. Nothing is fused.

    Args:
        recipe: as `load_recipe` takes it.
        grid: file of the grid; None: the one beside the recipe, or that of a packaged recipe.
        seeds: two or more; each takes the place of the recipe's. None: 42, 43 and 44, or those of the
            sweep that goes on.
        overrides: as `load_recipe` takes them, for all configurations.
        out: default `adapters/NAME-sweep`.
        resume: go on with what stopped, add seeds, or take part in what another process began.
        early_stop: give no more seeds to a configuration whose mean so far is below the median of
            the finished ones over the same seeds.
        progress: called as work goes on; default: bars on a terminal or in a notebook.

    Raises:
        Forty2Error: with one line that says what to do. Finished runs stay.
    """
    if launched():
        raise RunError(
            "each process of a sweep trains alone; start it without mlx.launch, and again with "
            "`resume=True` on each further machine"
        )
    found = read_grid(grid, recipe)
    source = RecipeSource(recipe, overrides)
    base = source.load()
    path = run_path(f"{base.name}-sweep", out)
    check_usable(path, resume)
    if seeds is None:
        seeds = read_record(path).seeds if resume else SEEDS
    check_seeds(seeds)
    objective = objective_of(found, base)
    assert base.benchmark is not None
    check_tasks(base.benchmark)
    if found.method == "tpe":
        need_optuna()
        tried = check_ranges(found, source)
        every: list[Configuration] = []
    else:
        tried = every = configurations(found, source)
    check_metrics(found, tried)
    for model in {(one.recipe.model, one.recipe.init_from): one.recipe for one in every}.values():
        provenance_of(model)  # a model that is not there is found before the first run
    if not resume:
        check_rows(found, tried, path, trust_remote_code=trust_remote_code)
    with write_errors(path):
        make_folder(path)
    with locked(path / "sweep.lock"):
        base, questions = with_same_questions(base, path)
        record = SweepRecord(
            grid=found.text,
            method=found.method,
            parameters=tuple(one.key for one in found.parameters),
            objective=objective,
            goal=found.goal,
            seeds=tuple(seeds),
            early_stop=early_stop,
            day=now()[:10],
            questions=questions,
        )
        record = _begin(path, record, base, found)
        for one in every:
            _folder(path, one).begin(_asked(one, base))
    shared = SharedWork(path, record.day, trust_remote_code, progress)
    work = _Sweep(path, record, base, found, source, shared)
    work.run_all()
    left = [one for one in configuration_folders(path) if not one.is_finished(record.seeds)]
    if not left:
        shutil.rmtree(path / STATES, ignore_errors=True)
    return show_sweep(path)


def _folder(path: Path, configuration: Configuration) -> ConfigurationFolder:
    return ConfigurationFolder(path / configuration.name)


def _asked(configuration: Configuration, base: Recipe) -> Configuration:
    """Return the configuration with the questions that all of the sweep are asked."""
    recipe = changed(configuration.recipe, benchmark=base.benchmark)
    return configuration._replace(recipe=recipe)


def _begin(path: Path, record: SweepRecord, base: Recipe, grid: Grid) -> SweepRecord:
    """Write what the sweep starts with, or compare it with what is there.

    Raises:
        RunError: it was started with another recipe, grid or setting.
    """
    recipe = to_yaml(base, path)
    if not (path / "sweep.json").exists():
        write_text(path / RECIPE, recipe)
        write_record(path, record)
        return record
    remove_leftovers(path)
    before = read_record(path)
    differs = [
        what
        for what, same in (
            ("recipe", (path / RECIPE).read_text("utf-8") == recipe),
            ("grid", before.grid == record.grid),
            ("`early_stop`", before.early_stop == record.early_stop),
        )
        if not same
    ]
    if differs:
        raise RunError(
            f"{path}: was started with another {' and '.join(differs)}; put that back, or name "
            "another `out`"
        )
    record = dataclasses.replace(record, day=before.day)
    if before.seeds != record.seeds:
        if before.early_stop or grid.method == "tpe" or not {*before.seeds} <= {*record.seeds}:
            raise RunError(
                f"{path}: was started with seeds {', '.join(map(str, before.seeds))}; go on with these"
            )
        if is_confirmed(path):
            raise RunError(
                f"{path}: is confirmed, and takes no more seeds, since they could change its winner; go on "
                f"with seeds {', '.join(map(str, before.seeds))}, or name another `out`"
            )
        write_record(path, record)
    return record


@dataclass(frozen=True)
class _Sweep:
    """A sweep under way in this process."""

    path: Path
    record: SweepRecord
    base: Recipe
    grid: Grid
    source: RecipeSource
    shared: SharedWork

    def run_all(self) -> None:
        """Run configurations until none is left that no other process has taken."""
        while (taken := self._take()) is not None:
            folder, lock = taken
            with lock:
                self._run(folder)
            self._tell(folder)

    def _take(self) -> tuple[ConfigurationFolder, IO[str]] | None:
        """Take the next configuration: its folder, and its lock; None: there is none left."""
        with locked(self.path / "sweep.lock"):
            for folder in self._open():
                if folder.is_finished(self.record.seeds):
                    continue
                lock = try_lock(folder.path / "lock")
                if lock is not None:
                    return folder, lock
        return None

    def _open(self) -> Iterator[ConfigurationFolder]:
        """Yield the configurations in their order, those that a search proposes now at the end."""
        if self.grid.method != "tpe":
            yield from configuration_folders(self.path)
            return
        study = self._study()
        for number, settings in itertools.chain(study.proposals(), iter(study.propose, None)):
            try:
                configuration = configure(self.grid, self.source, number, settings)
            except RecipeError as error:  # a combination that could not be checked beforehand
                warnings.warn(
                    f"{configuration_name(number)} is left out: {first_line(error)}", stacklevel=2
                )
                study.tell(number, None)
                continue
            folder = _folder(self.path, configuration)
            folder.begin(_asked(configuration, self.base))
            if folder.is_finished(self.record.seeds):
                study.tell(number, self._value(folder))
            yield folder

    def _study(self) -> Study:
        return Study(self.path / "study.db", self.grid, self.base.seed)

    def _tell(self, folder: ConfigurationFolder) -> None:
        if self.grid.method == "tpe":
            with locked(self.path / "sweep.lock"):
                number = int(folder.name.removeprefix("c"))
                self._study().tell(number, self._value(folder))

    def _value(self, folder: ConfigurationFolder) -> float | None:
        """Return the mean over seeds that a search maximizes; None: the training broke off."""
        done = folder.done_seeds(self.record.seeds)
        if folder.ended("failed") is not None or not done:
            return None
        return _mean(self.record, folder, done)

    def _run(self, folder: ConfigurationFolder) -> None:
        """Run a configuration with all seeds that are left."""
        recipe = folder.read().recipe
        lengths = self._lengths(folder, recipe)
        for seed in self.record.seeds:
            if folder.is_done(seed):
                continue
            if self.record.early_stop and stops(self.path, self.record, folder):
                return
            seeded = changed(recipe, seed=seed)
            try:
                self.shared.run(seeded, folder.run(seed), lengths, f"{folder.name} seed {seed}")
            except TrainingError as error:
                folder.end("failed", {"seed": seed, "error": first_line(error)})
                return
            folder.set_done(seed, self._scores(folder, seeded))

    def _lengths(self, folder: ConfigurationFolder, recipe: Recipe) -> list[int]:
        if self.grid.method == "tpe":
            return untouched_length(recipe, self.record.parameters)
        return self._shared_lengths[folder.name]

    @functools.cached_property
    def _shared_lengths(self) -> dict[str, list[int]]:
        """Numbers of first phases that each configuration shares with others, by its name."""
        folders = configuration_folders(self.path)
        lengths = shared_lengths([folder.read().recipe for folder in folders], self.path)
        return {folder.name: length for folder, length in zip(folders, lengths, strict=True)}

    def _scores(self, folder: ConfigurationFolder, recipe: Recipe) -> dict[str, float]:
        measured = measurements(read_stage(last_measurement(folder.run(recipe.seed), recipe)))
        scores = {name: float(measurement.values.mean()) for name, measurement in measured.items()}
        metric = self.record.objective.metric
        if metric not in scores:
            raise RunError(
                f"{folder.run(recipe.seed)}: {self.record.objective.name} was not measured: it has "
                "fewer than two items; add held-out rows, or name another metric in another sweep"
            )
        return scores


def stops(path: Path, record: SweepRecord, folder: ConfigurationFolder) -> bool:
    """Apply the median rule: record that a configuration gets no more seeds, if it is behind."""
    done = folder.done_seeds(record.seeds)
    whole = [
        other
        for other in configuration_folders(path)
        if other.path != folder.path and len(other.done_seeds(record.seeds)) == len(record.seeds)
    ]
    if not done or len(whole) < FEWEST_TO_STOP:
        return False
    own = _mean(record, folder, done)
    median = statistics.median(_mean(record, other, done) for other in whole)
    if own >= median:
        return False
    sign = record.objective.sign
    folder.end("stopped", {"after": done, "mean": sign * own, "median": sign * median})
    return True


def _mean(record: SweepRecord, folder: ConfigurationFolder, seeds: Sequence[int]) -> float:
    """Return the mean over seeds of the metric, higher is better."""
    sign, metric = record.objective.sign, record.objective.metric
    return sign * statistics.fmean(folder.scores(seed)[metric] for seed in seeds)
