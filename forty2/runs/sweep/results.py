"""The results of a sweep: means with intervals, cost, and whether there is a winner.

The best configuration is the winner if its paired interval over seeds and items excludes zero
against each other one. Even then its score is optimistic: it was chosen for being high. Only fresh
seeds (`confirming`) show how much of it stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forty2.benchmark.stages import read_stage
from forty2.benchmark.stats import FEWEST, LEVEL, RESAMPLES, SEED, Interval, Values
from forty2.files import JsonObject, read_json, write_json
from forty2.recipe.schema import Recipe
from forty2.report.sweep import text_table, write_sweep
from forty2.run_paths import phase_label
from forty2.runs.folder import read_times
from forty2.runs.measuring import measurement_path
from forty2.runs.records import Provenance
from forty2.runs.replicates import BASE
from forty2.runs.seed_statistics import interval, mean_over_seeds
from forty2.runs.sweep.folder import (
    RECIPE,
    RESULTS,
    ConfigurationFolder,
    configuration_folders,
    read_record,
)
from forty2.runs.sweep.metrics import Measured, Objective, measurements

CONFIRMED = Path("confirm") / "confirm.json"


@dataclass(frozen=True)
class SweepResult:
    """The findings of a sweep, and where they are written."""

    path: Path
    record: JsonObject
    """The content of SWEEP/results.json."""
    table: str
    winner: str | None
    """Name of the configuration that is better than each other one; None: no winner."""
    sentence: str
    """Whether there is a winner, and why."""
    left: int
    """Configurations that are not finished."""
    report: Path


class Replicates(NamedTuple):
    """A metric's scores of one configuration, over all seeds."""

    low: float
    """Smallest possible score."""
    high: float
    values: Values
    """(S, n), of n different items; NaN where a seed did not have the item."""
    items: tuple[tuple[str, int], ...]
    """Name of each item, and how often the name has come before."""


class Difference(NamedTuple):
    """The paired difference of two configurations in one metric, positive if the first is better."""

    value: float
    low: float
    high: float
    n: int
    """Items."""

    @property
    def is_certain(self) -> bool:
        """Whether the first one is better."""
        return self.n >= FEWEST and self.low > 0


def show_sweep(path: Path) -> SweepResult:
    """Collect the results of a sweep so far, and write its report.

    Raises:
        RunError: there is no sweep.
    """
    record = read_record(path)
    folders = configuration_folders(path)
    scores = {folder.name: replicates_of(folder, record.seeds) for folder in folders}
    finished = [folder for folder in folders if folder.is_finished(record.seeds)]
    left = len(folders) - len(finished)
    whole = {
        folder.name: scores[folder.name]
        for folder in folders
        if len(folder.done_seeds(record.seeds)) == len(record.seeds)
        and folder.ended("stopped") is None
    }
    best, winner, against, sentence = claim(whole, record.objective, left)
    result: JsonObject = {
        "name": path.name,
        "method": record.method,
        "grid": record.grid,
        "recipe": (path / RECIPE).read_text("utf-8"),
        "parameters": list(record.parameters),
        "metric": {**record.objective._asdict(), "goal": record.goal},
        "seeds": list(record.seeds),
        "early_stop": record.early_stop,
        "questions": record.questions,
        "statistics": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "base": _base_scores(path),
        "configurations": [
            {
                "name": folder.name,
                "settings": dict(folder.read().settings),
                "seeds": folder.done_seeds(record.seeds),
                "state": _state(folder, record.seeds),
                "scores": summaries(scores[folder.name]),
                "seconds": sum(
                    own_seconds(folder.run(seed)) for seed in record.seeds if folder.is_done(seed)
                ),
            }
            for folder in folders
        ],
        "shared_seconds": sum(map(own_seconds, sorted(path.glob("shared/*/seed*/")))),
        "best": best,
        "winner": winner,
        "against": {name: change._asdict() for name, change in against.items()},
        "sentence": sentence,
        "confirmed": read_json(path / CONFIRMED) if (path / CONFIRMED).exists() else None,
        "run": _provenance(path),
        "items": {
            name: {metric: _listed(replicates.values) for metric, replicates in metrics.items()}
            for name, metrics in scores.items()
        },
    }
    write_json(path / RESULTS, result)
    report = write_sweep(result, path)
    return SweepResult(path, result, text_table(result), winner, sentence, left, report)


def _each_of(others: Sequence[str]) -> str:
    return others[0] if len(others) == 1 else f"each of {len(others)} others"


def _listed(values: Values) -> list[list[float | None]]:
    """Return scores for JSON, null where a seed did not have the item."""
    return [[None if np.isnan(one) else one for one in row] for row in values.tolist()]


def _state(folder: ConfigurationFolder, seeds: Sequence[int]) -> str:
    failed, stopped = folder.ended("failed"), folder.ended("stopped")
    if failed is not None:
        return f"failed with seed {failed['seed']}: {failed['error']}"
    if stopped is not None:
        return f"stopped after seed {', '.join(map(str, stopped['after']))}: below the median"
    return "finished" if folder.is_finished(seeds) else "not finished"


def _provenance(path: Path) -> JsonObject | None:
    first = next(iter(sorted(path.glob("c*/seed*/run.json"))), None)
    if first is None:
        return None
    provenance = Provenance.from_json(read_json(first)).to_json()
    return {key: provenance[key] for key in ("model", "model_sha256", "versions")}


def _base_scores(path: Path) -> dict[str, float]:
    """Return the base model's means by metric over all seeds, where one base serves all runs."""
    homes = sorted(path.glob(f"base/*-seed*/{BASE}"))
    if len({home.parts[-3].partition("-")[0] for home in homes}) != 1:
        return {}
    scores = stacked([measurements(read_stage(home)) for home in homes])
    return {name: mean_over_seeds(replicates.values) for name, replicates in scores.items()}


def own_seconds(run: Path) -> float:
    """Return the seconds that a run took, without phases that it took over."""
    taken = read_json(run / "run.json").get("reused", {}).get("phases", [])
    lines = [line for line in read_times(run) if line.get("phase") not in taken]
    return round(sum(float(line["seconds"]) for line in lines), 3)


# --- scores ---------------------------------------------------------------------------------------


def replicates_of(folder: ConfigurationFolder, seeds: Sequence[int]) -> dict[str, Replicates]:
    """Read the scores of a configuration's finished runs, by metric."""
    recipe: Recipe = folder.read().recipe
    runs = [folder.run(seed) for seed in seeds if folder.is_done(seed)]
    return stacked([measurements(read_stage(last_measurement(run, recipe))) for run in runs])


def last_measurement(run: Path, recipe: Recipe) -> Path:
    """Return the file of a run's last measurement."""
    return measurement_path(run, phase_label(len(recipe.phases), [*recipe.phases][-1]))


def stacked(by_seed: Sequence[Mapping[str, Measured]]) -> dict[str, Replicates]:
    """Put the scores of several seeds together, item by item; a metric needs two items of each seed."""
    replicates: dict[str, Replicates] = {}
    for name, (metric, _, _) in by_seed[0].items() if by_seed else ():
        if not all(name in measured for measured in by_seed):
            continue
        rows = [_by_item(measured[name]) for measured in by_seed]
        items = tuple(dict.fromkeys(item for row in rows for item in row))
        values = np.array([[row.get(item, np.nan) for item in items] for row in rows])
        replicates[name] = Replicates(metric.low, metric.high, values, items)
    return replicates


def _by_item(measured: Measured) -> dict[tuple[str, int], float]:
    """Return scores by the item's name, and by how often the name has come before."""
    seen: Counter[str] = Counter()
    found = {}
    for item, value in zip(measured.items, measured.values.tolist(), strict=True):
        found[item, seen[item]] = value
        seen[item] += 1
    return found


def summaries(scores: Mapping[str, Replicates]) -> dict[str, JsonObject]:
    """Return the mean of each metric, with its 95% interval over seeds and items if there is one."""
    summary_of: dict[str, JsonObject] = {}
    for name, replicates in scores.items():
        ends: Interval | tuple[None, None] = (None, None)
        if len(replicates.values) > 1:
            ends = interval(replicates.values, replicates.low, replicates.high)
        low, high = ends
        summary_of[name] = {
            "value": mean_over_seeds(replicates.values),
            "low": low,
            "high": high,
            "n": replicates.values.shape[1],
        }
    return summary_of


def difference(first: Replicates, other: Replicates, sign: float) -> Difference | None:
    """Compute the paired difference of two configurations; None: they were measured on other items."""
    if not _same_items(first, other):
        return None
    values = sign * (first.values - other.values)
    width = first.high - first.low
    ends = interval(values, -width, width)
    return Difference(mean_over_seeds(values), ends.low, ends.high, values.shape[1])


def _same_items(first: Replicates, other: Replicates) -> bool:
    return first.items == other.items and np.array_equal(
        np.isnan(first.values), np.isnan(other.values)
    )


class Claim(NamedTuple):
    """The best configuration, and whether it is the winner."""

    best: str | None
    winner: str | None
    against: dict[str, Difference]
    """Paired differences of the best to the others."""
    sentence: str


def claim(
    scores: Mapping[str, Mapping[str, Replicates]], objective: Objective, left: int = 0
) -> Claim:
    """Find the best configuration, and whether it is better than each other one.

    Args:
        scores: of the configurations that ran with all seeds, by name and metric.
        left: configurations that are not finished.
    """
    metric = objective.metric
    replicates = {name: one[metric] for name, one in scores.items() if metric in one}
    if not replicates:
        return Claim(None, None, {}, "No winner: no configuration has run with all seeds.")
    means = {name: objective.sign * mean_over_seeds(one.values) for name, one in replicates.items()}
    order = sorted(replicates, key=lambda name: -means[name])
    best, *others = order
    against: dict[str, Difference] = {}
    reason = ""
    for name in others:
        one = difference(replicates[best], replicates[name], objective.sign)
        if one is None:
            reason = reason or f"{best} and {name} were measured on other items"
            continue
        against[name] = one
        if not one.is_certain:
            reason = reason or (
                f"too few items to tell ({one.n})"
                if one.n < FEWEST
                else f"{best} and {name} overlap"
            )
    if left:
        reason = f"{left} configuration{' is' if left == 1 else 's are'} not finished"
    elif not others:
        reason = "there is nothing to compare with"
    if reason:
        said = f"No winner: {reason}. The best mean by {objective.name} is {best}'s."
        return Claim(best, None, against, said)
    return Claim(
        best,
        best,
        against,
        f"{best} is better by {objective.name} than {_each_of(others)} (paired 95% intervals over "
        "seeds and items). It was chosen for its score, so expect less on fresh seeds: "
        "confirm it.",
    )
