"""The folder of a sweep.

SWEEP/sweep.json              what it was started with: grid, seeds, metric
SWEEP/recipe.yaml             the recipe as it is, with every default
SWEEP/sweep.lock              held while a process takes its next configuration
SWEEP/questions.json          TruthfulQA's questions, if a part of them is asked
SWEEP/base/KEY/               the base's measurement, which the first run with each seed begins with
SWEEP/base/KEY-seedN/         the same with the held-out rows that seed N draws, for the runs after it
SWEEP/shared/KEY/seedN/       runs of first phases that several configurations share
SWEEP/states/                 output of frozen blocks, until the sweep or its confirmation is done
SWEEP/study.db                Optuna's study, of a TPE search
SWEEP/c001/configuration.json the settings of a configuration; recipe.yaml: its whole recipe
SWEEP/c001/lock               held by the process that runs it
SWEEP/c001/seedN/             its run with this seed; seedN.json is written when that is done
SWEEP/c001/stopped.json       `early_stop` ended it; failed.json: its training broke off
SWEEP/results.json            all scores; sweep.md, sweep.html: the report
SWEEP/confirm/                runs of the winner and of the recipe as it is, with fresh seeds
SWEEP/confirm/begun.json      the winner and these seeds
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forty2.errors import RunError
from forty2.files import JsonObject, make_folder, read_json, write_errors, write_json, write_text
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.runs.folder import try_lock
from forty2.runs.sweep.configurations import Configuration
from forty2.runs.sweep.metrics import Objective

VERSION = 1
RESULTS = "results.json"
RECIPE = "recipe.yaml"
STATES = "states"
CONFIRMING = Path("confirm") / "begun.json"
_STARTED = "sweep.json"
PUT_BACK = "put back a copy, or begin another sweep"
_DELETE = "delete it, then go on with `resume=True`, which makes it again"


@dataclass(frozen=True)
class SweepRecord:
    """What a sweep was started with; sweep.json."""

    grid: str
    """The grid's file."""
    method: str
    parameters: tuple[str, ...]
    """The grid's keys."""
    objective: Objective
    goal: str
    seeds: tuple[int, ...]
    early_stop: bool
    day: str
    """The day that chat templates take for today."""
    questions: JsonObject | None

    def to_json(self) -> JsonObject:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"version": VERSION, **values, "objective": self.objective._asdict()}

    @classmethod
    def from_json(cls, found: JsonObject) -> SweepRecord:
        values = {field.name: found[field.name] for field in dataclasses.fields(cls)}
        values["objective"] = Objective(**found["objective"])
        values["seeds"] = tuple(found["seeds"])
        values["parameters"] = tuple(found["parameters"])
        return cls(**values)


def read_parts(file: Path, *keys: str, advice: str = _DELETE) -> JsonObject:
    """Read a record of the sweep that has these keys.

    Args:
        advice: what to do about a damaged one.

    Raises:
        RunError: it is missing or damaged.
    """
    found = read_json(file)
    missing = [*keys] if not isinstance(found, dict) else [key for key in keys if key not in found]
    if missing:
        raise RunError(f"{file}: damaged, since it has no {missing[0]}; {advice}")
    record: JsonObject = found
    return record


def read_record(path: Path) -> SweepRecord:
    """Read what a sweep was started with.

    Raises:
        RunError: there is no sweep, or another release wrote it.
    """
    file = path / _STARTED
    if not file.exists():
        raise RunError(f"{path}: there is no sweep; name the folder that `forty2 sweep` wrote")
    version = read_parts(file, "version", advice=PUT_BACK)["version"]
    if version != VERSION:
        raise RunError(
            f"{path}: written by another release (sweep format {version}, this one reads "
            f"{VERSION}); go on with that release"
        )
    names = [field.name for field in dataclasses.fields(SweepRecord)]
    return SweepRecord.from_json(read_parts(file, *names, advice=PUT_BACK))


def write_record(path: Path, record: SweepRecord) -> None:
    """Write what a sweep was started with."""
    write_json(path / _STARTED, record.to_json())


def is_confirmed(path: Path) -> bool:
    """Return whether the confirmation of a sweep has begun."""
    return (path / CONFIRMING).exists()


def check_usable(path: Path, resume: bool) -> None:
    """Refuse a place that holds something else, or a sweep that is not to go on.

    Raises:
        RunError: with what to do.
    """
    there = (path / _STARTED).exists()
    if resume and not there:
        raise RunError(f"{path}: there is no sweep to resume; leave `resume=True` out to begin one")
    if path.exists() and not path.is_dir():
        raise RunError(f"{path}: is a file; name another `out`")
    if there and not resume:
        raise RunError(
            f"{path}: holds a sweep already; go on with `resume=True`, or name another `out`"
        )
    if not there and path.is_dir() and any(path.iterdir()):
        raise RunError(f"{path}: is not an empty folder; name another `out`")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock, and hold it."""
    make_folder(path.parent)
    lock = try_lock(path, wait=True)
    assert lock is not None
    with lock:
        yield


_ENDS = {"stopped": ("after",), "failed": ("seed", "error")}
"""Keys of the records of early ends that are read again."""


@dataclass(frozen=True)
class ConfigurationFolder:
    """One configuration's folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def begin(self, configuration: Configuration) -> None:
        """Write settings and recipe, if they are not there."""
        with write_errors(self.path):
            make_folder(self.path)
        if not (self.path / "configuration.json").exists():
            write_text(self.path / RECIPE, to_yaml(configuration.recipe, self.path))
            write_json(self.path / "configuration.json", {"settings": dict(configuration.settings)})

    def read(self) -> Configuration:
        """Read settings and recipe."""
        settings = read_parts(self.path / "configuration.json", "settings")["settings"]
        return Configuration(self.name, settings, load_recipe(self.path / RECIPE))

    def run(self, seed: int) -> Path:
        """Return the folder of the run with a seed."""
        return self.path / f"seed{seed}"

    def is_done(self, seed: int) -> bool:
        """Return whether the run with a seed is finished and measured."""
        return self._done_file(seed).exists()

    def scores(self, seed: int) -> dict[str, float]:
        """Return the means of a finished run, by metric."""
        return dict(read_parts(self._done_file(seed), "scores")["scores"])

    def set_done(self, seed: int, scores: dict[str, float]) -> None:
        write_json(self._done_file(seed), {"scores": scores})

    def _done_file(self, seed: int) -> Path:
        return self.path / f"seed{seed}.json"

    def done_seeds(self, seeds: Sequence[int]) -> list[int]:
        """Return the seeds whose runs are finished."""
        return [seed for seed in seeds if self.is_done(seed)]

    def ended(self, why: str) -> JsonObject | None:
        """Return the record of an early end, `stopped` or `failed`; None: it did not end so."""
        file = self.path / f"{why}.json"
        return read_parts(file, *_ENDS[why]) if file.exists() else None

    def end(self, why: str, record: JsonObject) -> None:
        write_json(self.path / f"{why}.json", record)

    def is_finished(self, seeds: Sequence[int]) -> bool:
        """Return whether nothing of it is left to run."""
        if self.ended("stopped") is not None or self.ended("failed") is not None:
            return True
        return len(self.done_seeds(seeds)) == len(seeds)


def configuration_folders(path: Path) -> list[ConfigurationFolder]:
    """Return the folders of a sweep's configurations, in their order."""
    found = sorted(
        path.glob("c*/configuration.json"), key=lambda file: (len(file.parent.name), file)
    )
    return [ConfigurationFolder(file.parent) for file in found]
