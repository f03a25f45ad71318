"""Taking over finished phases of another run that trained the same."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from forty2.errors import RunError
from forty2.files import JsonObject, read_json, staged_folder, write_json
from forty2.recipe.differences import differences
from forty2.recipe.reading import to_yaml
from forty2.recipe.schema import Recipe
from forty2.run_paths import phase_label
from forty2.runs.context import RunContext, reread
from forty2.runs.extending import REPORTING
from forty2.runs.folder import VERSION, read_metrics, read_times
from forty2.runs.inputs import DATA_HASHES, PhaseInput
from forty2.runs.phase_training import refuse_damage

_OWN = ("name", "model", "fuse", "benchmark", "phases", *REPORTING)
"""Keys in which two runs may differ. The model is recognized by its weights, phases one by one."""
_RECOGNIZED_BY_ROWS = ("data", "valid")


def check_source(recipe: Recipe, source: Path) -> None:
    """Refuse to take phases over from a folder that has none to give, before anything is written.

    Raises:
        RunError: it holds no run, or none that finished this recipe's first phase with these settings.
    """
    if not (source / "run.json").exists():
        raise RunError(f"{source}: there is no run to take phases over from")
    name = next(iter(recipe.phases))
    reasons = _recipe_differs(recipe, source)
    reasons = reasons or _settings_differ(recipe, name, source / phase_label(1, name))
    if reasons:
        raise _nothing_taken(source, reasons)


def _nothing_taken(source: Path, reasons: Sequence[str]) -> RunError:
    return RunError(f"{source}: no phase of it can be taken over ({'; '.join(reasons)})")


def take_over_phases(run: RunContext, phases: tuple[PhaseInput, ...], source: Path) -> list[str]:
    """Copy the phases that another run finished and this one would train to the same adapter.

    These are the first phases, up to one that differs in its settings, its rows, or what came before.

    Args:
        source: folder of the other run.

    Returns:
        Names of the phases.

    Raises:
        RunError: there is no such phase, or a file of one is damaged.
    """
    record = run.path / "run.json"
    if before := read_json(record).get("reused"):  # a run that goes on
        return list(before["phases"])
    reasons = _whole_run_differs(run, source)
    taken: list[str] = []
    for phase in phases if not reasons else ():
        reasons = _phase_differs(run, phase, source)
        if reasons:
            break
        taken.append(phase.name)
        if not (run.path / phase.label / "phase.json").exists():
            _copy(run, phase, source)
    if not taken:
        raise _nothing_taken(source, reasons)
    write_json(record, {**read_json(record), "reused": {"run": str(source), "phases": taken}})
    return taken


def settings_of_phases(recipe: Recipe, count: int, folder: Path) -> JsonObject:
    """Return all keys that the first phases of a recipe depend on.

    Two recipes in which they are equal train these phases to the same adapter, if their files hold
    the same rows and their model the same weights.

    Args:
        count: number of phases.
        folder: where paths lead from, so that they do not depend on the working directory.
    """
    tree: JsonObject = yaml.safe_load(to_yaml(recipe, folder))
    shared = {key: value for key, value in tree.items() if key not in _OWN}
    phases = dict(list(tree["phases"].items())[:count])
    return {**shared, "model": tree["model"], "phases": phases}


def _whole_run_differs(run: RunContext, source: Path) -> list[str]:
    theirs = read_json(source / "run.json")
    ours = read_json(run.path / "run.json")
    if theirs.get("version") != VERSION:
        return [f"another release wrote it (run format {theirs.get('version')})"]
    reasons = [
        f"{what} differ"
        for what, key in (
            ("the model's weights", "model_sha256"),
            ("the weights of init_from", "init_from_sha256"),
            ("the rules of epochs", "whole_epochs"),
        )
        if theirs.get(key) != ours.get(key)
    ]
    return reasons + _recipe_differs(run.recipe, source)


def _recipe_differs(recipe: Recipe, source: Path) -> list[str]:
    before, after = (
        {key: value for key, value in one.items() if key not in _OWN}
        for one in _recipes(recipe, source)
    )
    return list(map(str, differences(before, after)))


def _phase_differs(run: RunContext, phase: PhaseInput, source: Path) -> list[str]:
    folder = source / phase.label
    found = _settings_differ(run.recipe, phase.name, folder)
    if (folder / "phase.json").exists() and read_json(source / DATA_HASHES).get(
        phase.name
    ) != phase.data.hashes():
        found.append(f"the rows of {phase.name} differ")
    return found


def _settings_differ(recipe: Recipe, name: str, folder: Path) -> list[str]:
    """List how a phase's settings differ from those in the other run.

    Args:
        folder: of the phase, in the other run.
    """
    if not (folder / "phase.json").exists():
        return [f"{folder} is not there or not finished"]
    before, after = (
        {k: v for k, v in one["phases"][name].items() if k not in _RECOGNIZED_BY_ROWS}
        for one in _recipes(recipe, folder.parent)
    )
    return [f"phases.{name}.{one}" for one in differences(before, after)]


def _recipes(recipe: Recipe, source: Path) -> tuple[JsonObject, JsonObject]:
    """Return the other run's recipe and this one's."""
    texts = (reread(source / "recipe.yaml", recipe), to_yaml(recipe))
    before, after = map(yaml.safe_load, texts)
    return before, after


def _copy(run: RunContext, phase: PhaseInput, source: Path) -> None:
    refuse_damage(source / phase.label, "the phase is trained anew")
    run.folder.forget_metrics_after(phase.name, -1)  # of a copy that was interrupted
    for line in read_metrics(source / "metrics.jsonl"):
        if line["phase"] == phase.name:
            run.folder.log(line)
    for line in read_times(source):
        if line.get("phase") == phase.name:
            run.folder.log_time(line)
    work = Path("work", phase.label)
    if (source / work).exists():  # the checkpoint from which the phase can be extended
        shutil.copytree(source / work, run.path / work, dirs_exist_ok=True)
    with staged_folder(run.path / phase.label) as staged:
        for file in (source / phase.label).iterdir():
            shutil.copyfile(file, staged / file.name)
