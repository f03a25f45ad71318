"""Confirming a sweep: its best configuration and the recipe as it is, again with fresh seeds.

The best of many scores is partly luck. Fresh seeds show how much of it stays: the shrinkage.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from forty2.errors import RunError
from forty2.files import JsonObject, write_errors, write_json
from forty2.progress import Progress, bars, draws_bars
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.runs.replicates import check_seeds
from forty2.runs.seed_statistics import interval, mean_over_seeds
from forty2.runs.sweep.configurations import Configuration
from forty2.runs.sweep.folder import (
    CONFIRMING,
    PUT_BACK,
    RECIPE,
    STATES,
    ConfigurationFolder,
    SweepRecord,
    configuration_folders,
    is_confirmed,
    locked,
    read_parts,
    read_record,
)
from forty2.runs.sweep.results import (
    CONFIRMED,
    Replicates,
    SweepResult,
    difference,
    replicates_of,
    show_sweep,
    summaries,
)
from forty2.runs.sweep.shared_work import SharedWork, shared_lengths

DEFAULT = "default"
"""Name of the recipe as it is."""


@draws_bars
def confirm(
    path: str | Path,
    seeds: Sequence[int],
    *,
    trust_remote_code: bool = False,
    progress: Progress = bars,
) -> SweepResult:
    """Train a sweep's best configuration and the recipe as it is with seeds that it has not used.

    A confirmation that stopped goes on when it is called again with the same seeds. There is one for
    each sweep: trying until it holds would be another search.

    Args:
        path: the sweep's folder.
        seeds: two or more, none of them the sweep's.
        progress: called as work goes on; default: bars on a terminal or in a notebook.

    Raises:
        Forty2Error: with one line that says what to do. Finished runs stay.
    """
    path = Path(path)
    record = read_record(path)
    check_seeds(seeds)
    used = sorted({*seeds} & {*record.seeds})
    if used:
        raise RunError(
            f"seeds {', '.join(map(str, used))}: the sweep has used them; confirm with fresh ones"
        )
    shown = show_sweep(path)
    best = shown.record["best"]
    if shown.left or best is None:
        raise RunError(f"{path}: {shown.sentence} Finish the sweep first: `resume=True`")
    with write_errors(path), locked(path / "confirm" / "lock"):
        _check_same(path, best, seeds)
        return _confirm(path, record, best, seeds, trust_remote_code, progress)


def _check_same(path: Path, best: str, seeds: Sequence[int]) -> None:
    """Refuse a second confirmation with other seeds, or of another configuration."""
    if not is_confirmed(path):
        write_json(path / CONFIRMING, {"configuration": best, "seeds": list(seeds)})
        return
    before = read_parts(path / CONFIRMING, "configuration", "seeds", advice=PUT_BACK)
    if (before["configuration"], {*before["seeds"]}) != (best, {*seeds}):
        raise RunError(
            f"{path}: {before['configuration']} was confirmed with seeds "
            f"{', '.join(map(str, before['seeds']))} already; another try would be a search again"
        )


def _confirm(
    path: Path,
    record: SweepRecord,
    best: str,
    seeds: Sequence[int],
    trust_remote_code: bool,
    progress: Progress,
) -> SweepResult:
    swept = next(one for one in configuration_folders(path) if one.name == best)
    default = load_recipe(path / RECIPE)
    chosen = swept.read()
    every = {best: chosen}
    if to_yaml(default) != to_yaml(chosen.recipe):
        every[DEFAULT] = Configuration(DEFAULT, {}, default)
    folders = {name: ConfigurationFolder(path / "confirm" / name) for name in every}
    lengths = shared_lengths([one.recipe for one in every.values()], path)
    shared = SharedWork(path, record.day, trust_remote_code, progress)
    for (name, one), shares in zip(every.items(), lengths, strict=True):
        folder = folders[name]
        folder.begin(one)
        for seed in seeds:
            if not folder.is_done(seed):
                recipe = dataclasses.replace(one.recipe, seed=seed)
                shared.run(recipe, folder.run(seed), shares, f"confirm {name} seed {seed}")
                folder.set_done(seed, {})
    shutil.rmtree(path / STATES, ignore_errors=True)
    fresh = {name: replicates_of(folder, seeds) for name, folder in folders.items()}
    before = replicates_of(swept, record.seeds)
    default_before = _default_in_sweep(path, record, default)
    write_json(
        path / CONFIRMED,
        _findings(record, best, seeds, fresh, before, default_before),
    )
    return show_sweep(path)


def _default_in_sweep(path: Path, record: SweepRecord, default: object) -> dict[str, Replicates]:
    """Return the scores of the sweep's configuration that is the recipe as it is, if there is one."""
    for folder in configuration_folders(path):
        whole = len(folder.done_seeds(record.seeds)) == len(record.seeds)
        if whole and folder.read().recipe == default:
            return replicates_of(folder, record.seeds)
    return {}


def _findings(
    record: SweepRecord,
    best: str,
    seeds: Sequence[int],
    fresh: dict[str, dict[str, Replicates]],
    before: dict[str, Replicates],
    default_before: dict[str, Replicates],
) -> JsonObject:
    """Compare fresh scores with those of the sweep, and the best with the recipe as it is."""
    metric, sign, name = record.objective.metric, record.objective.sign, record.objective.name
    old, new = before[metric], fresh[best][metric]
    findings: JsonObject = {
        "configuration": best,
        "seeds": list(seeds),
        "scores": {one: summaries(scores) for one, scores in fresh.items()},
        "before": summaries({metric: old})[metric],
        "after": summaries({metric: new})[metric],
        "shrinkage": _shrinkage(old, new, sign),
        "gain": None,
        "gain_before": None,
        "holds": None,
    }
    if DEFAULT not in fresh:
        findings["sentence"] = f"{best} is the recipe as it is: there is nothing to gain over it."
        return findings
    gain = difference(new, fresh[DEFAULT][metric], sign)
    if gain is None:
        findings["sentence"] = f"{best} and the recipe as it is were measured on other items."
        return findings
    findings["gain"] = gain._asdict()
    findings["holds"] = gain.is_certain
    if metric in default_before:
        earlier = difference(old, default_before[metric], sign)
        findings["gain_before"] = earlier._asdict() if earlier is not None else None
    says = "holds" if gain.is_certain else "does not hold"
    findings["sentence"] = (
        f"That {best} is better by {name} than the recipe as it is {says} on fresh seeds "
        f"{', '.join(map(str, seeds))}."
    )
    return findings


def _shrinkage(old: Replicates, new: Replicates, sign: float) -> JsonObject:
    """Return how much of a score is lost on fresh seeds, with its 95% interval.

    The interval is as if both had other items: where they have the same, it is too wide.
    """
    value = sign * (mean_over_seeds(old.values) - mean_over_seeds(new.values))
    ends = [
        interval(replicates.values, replicates.low, replicates.high) for replicates in (old, new)
    ]
    half = math.hypot(*((end.high - end.low) / 2 for end in ends))
    return {"value": value, "low": value - half, "high": value + half}
