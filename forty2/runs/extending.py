"""Going on with a changed recipe: more steps for a phase that has begun, other phases after it.

What was trained or measured after the change is removed and comes again, so that no report mixes old
and new results. A phase that has begun goes on from its last checkpoint that a phase of the new
length would have had, too; `phase_training` finds it. A phase that has not begun may change in
everything, as may phases be added, and the fused model.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from forty2.errors import RunError
from forty2.files import JsonObject, make_folder, read_json, write_bytes, write_json, write_text
from forty2.recipe.differences import Difference, differences
from forty2.report.records import TIMES
from forty2.run_paths import phase_label
from forty2.training.checkpoints import find_checkpoints, step_of

JOURNAL = "extension.json"
"""File of an extension under way: a run that is killed at it completes it when it goes on."""
BEGUN_WITH = "begun_with.json"
"""File in a phase's work folder, with the length under which its checkpoints were written."""
STEPS_PER_EPOCH = "steps_per_epoch"
"""Key of run.json with the steps of an epoch of each phase, by the phase's name."""
_LENGTH = ("steps", "epochs")
"""Keys of a phase that an extension may change."""
_GATES = ("gate", "on_fail")
"""Keys of a phase that judge what it has come to; they, too, may change."""
FREE = ("fuse",)
"""Sections of a recipe that concern only what comes after all phases."""
REPORTING = ("report_to", "project")
"""Keys of a recipe that concern nothing that is trained or measured."""
_DATA_HASHES = "data.json"
_ALL_RESULTS = ("fused.json", "summary.json", "report.md", "report.html", "benchmarks/fused*")


@dataclass(frozen=True)
class Extension:
    """A change of a run's recipe, and what it makes obsolete."""

    recipe: str
    """The new recipe, as YAML."""
    begun_with: dict[str, JsonObject]
    """Length so far of the phase that goes on, by its label; empty: none of them had begun."""
    obsolete: list[str]
    """Labels of the phases that are trained anew."""
    measured_again: list[str]
    """Labels of the phases after which the model is measured again."""
    message: str
    """Sentence that says what happens."""
    reread: list[str] = field(default_factory=list)
    """Names of the phases whose data may be other than before."""


def find_extension(path: Path, before: str, after: str) -> Extension:
    """Compare a run's recipe with the one that it is to go on with, both as YAML.

    Raises:
        RunError: they differ in what is done already, or a phase that has begun cannot take its new
            length.
    """
    old, new = _phases(before), _phases(after)
    begun = _begun(path, list(old))
    _check_what_has_begun(path, yaml.safe_load(before), yaml.safe_load(after), begun)
    labels = {name: phase_label(number, name) for number, name in enumerate(new, 1)}
    names = list(new)
    longer = [name for name in begun if _length(old[name]) != _length(new[name])]
    for name in longer:
        _check_length(path, labels[name], name, old[name], new[name])
    first = longer[0] if longer else None
    later = names[names.index(first) + 1 :] if first is not None else []
    removed = [phase_label(n, name) for n, name in enumerate(old, 1) if name not in begun]
    changed = [name for name in names if name not in begun and old.get(name) != new[name]]
    measured = [labels[name] for name in names[names.index(first) :]] if first else []
    message = f"{path}: " + "; ".join(
        [
            *(
                f"phases.{name} has {_in_words(new[name])} now, not {_in_words(old[name])}"
                for name in longer
            ),
            *(f"phases.{name} is taken as it is now, since it had not begun" for name in changed),
            *(
                f"phases.{name} is judged by its gate as it is now"
                for name in begun
                if any(old[name].get(key) != new[name].get(key) for key in _GATES)
            ),
            *(f"phases.{name} is left out" for name in old if name not in new),
            *(["the model is fused as it says now"] if _differ(before, after, FREE) else []),
        ]
    )
    kept = [name for name in begun if name not in later and name not in longer]
    if kept:
        message += f"; kept: {', '.join(kept)}"
    if first is not None:
        message += _redone(path, first, [name for name in later if _has_begun(path, labels[name])])
    return Extension(
        recipe=after,
        begun_with={labels[first]: _length(old[first])} if first is not None else {},
        obsolete=list(dict.fromkeys([*(labels[name] for name in later), *removed])),
        reread=[name for name in {**old, **new} if name not in begun],
        measured_again=measured,
        message=message,
    )


def _check_what_has_begun(
    path: Path, before: JsonObject, after: JsonObject, begun: list[str]
) -> None:
    """Refuse a change of what a run has done already."""
    order = list(after.get("phases") or {})[: len(begun)]
    if order != begun:
        raise RunError(
            f"{path}: began with the phases {', '.join(begun)}, not {', '.join(order)}; resume with "
            f"{path / 'recipe.yaml'}, or name another `run_dir`"
        )
    fixed = _fixed(before, after, begun)
    if fixed:
        raise RunError(
            f"{path}: was started with another recipe ({'; '.join(map(str, fixed))}). A run that goes on "
            "may change its fusing, phases that have not begun, and the steps, epochs and gate of the "
            f"others; resume with {path / 'recipe.yaml'}, or start another run, which can take over "
            f"finished phases that it has in common with this one (`run_dir`, `reuse={path}`)"
        )


def _fixed(before: JsonObject, after: JsonObject, begun: Collection[str]) -> list[Difference]:
    phases = {**(before.get("phases") or {}), **(after.get("phases") or {})}
    free = [*FREE, *REPORTING, *(f"phases.{name}" for name in phases)]
    free = [key for key in free if key.removeprefix("phases.") not in begun]
    free += [f"phases.{name}.{key}" for name in begun for key in (*_LENGTH, *_GATES)]
    return [
        found
        for found in differences(before, after)
        if not any(f"{found.key}.".startswith(f"{key}.") for key in free)
    ]


def fixed_differences(path: Path, before: JsonObject, after: JsonObject) -> list[Difference]:
    """Return the differences of a recipe from that of a run which no run can go on with."""
    return _fixed(before, after, _begun(path, list(before.get("phases") or {})))


def _begun(path: Path, phases: Sequence[str]) -> list[str]:
    """Return the phases of a run that have begun, in their order."""
    return [
        name
        for number, name in enumerate(phases, 1)
        if steps_done(path, phase_label(number, name)) is not None
    ]


def differs_in_reporting_alone(before: str, after: str) -> bool:
    """Return whether two recipes, as YAML, differ, but only in where the run reports to."""
    if before == after:
        return False
    old, new = (
        {key: value for key, value in yaml.safe_load(text).items() if key not in REPORTING}
        for text in (before, after)
    )
    return old == new


def extend(path: Path, extension: Extension) -> None:
    """Change the run's recipe and remove what the extension makes obsolete, all of it or nothing."""
    write_json(path / JOURNAL, asdict(extension))
    complete_extension(path)


def complete_extension(path: Path) -> None:
    """Complete an extension that was under way when the run was killed; may itself be killed."""
    if not (path / JOURNAL).exists():
        return
    extension = Extension(**read_json(path / JOURNAL))
    for label, length in extension.begun_with.items():
        _remove_folder(path / label)
        marker = path / "work" / label / BEGUN_WITH
        if not marker.exists():
            make_folder(marker.parent)
            write_json(marker, length)
    for label in extension.obsolete:
        for folder in (path / label, path / "work" / label):
            _remove_folder(folder)
    _remove_results(path, extension)
    if (path / _DATA_HASHES).exists():
        hashes = read_json(path / _DATA_HASHES)
        kept = {name: one for name, one in hashes.items() if name not in extension.reread}
        write_json(path / _DATA_HASHES, kept)
    write_text(path / "recipe.yaml", extension.recipe)
    (path / JOURNAL).unlink()


def steps_done(path: Path, label: str) -> int | None:
    """Return the last step of a phase that is saved; None: there is none."""
    record = path / label / "phase.json"
    if record.exists():
        return int(read_json(record)["steps"])
    checkpoints = find_checkpoints(path / "work" / label)
    return step_of(checkpoints[0]) if checkpoints else None


def _check_length(path: Path, label: str, name: str, old: JsonObject, new: JsonObject) -> None:
    """Refuse a new length that would not have begun with the steps that are done."""
    done = steps_done(path, label)
    key = next(key for key in _LENGTH if new[key] is not None)
    where = f"{path}: phases.{name}.{key}"
    course = ""
    if new["schedule"] != "constant":
        course = f"its learning rate falls to zero over all steps (schedule: {new['schedule']})"
    elif new.get("kl") and new["kl"]["to"] is not None:
        course = (
            f"the weight of its term kl changes over all steps (schedule: {new['kl']['schedule']})"
        )
    if course:
        raise RunError(
            f"{where}: {course}, so the {done} steps that are done do not begin a phase of another "
            f"length; start the longer one with another `run_dir`, or go on from this one's "
            f"adapter in a recipe with init_from: {path / label}"
        )
    remedy = "give more, or start the shorter one with another `run_dir`"
    if key == "steps" and new["steps"] < done:
        raise RunError(
            f"{where}: {new['steps']} is fewer than the {done} that are done, and steps cannot be "
            f"taken back; {remedy}"
        )
    if key == "epochs":
        per_epoch = read_json(path / "run.json").get(STEPS_PER_EPOCH, {}).get(name)
        if per_epoch is not None and (steps := math.ceil(new["epochs"] * per_epoch)) < done:
            raise RunError(
                f"{where}: {_in_words(new)} would be {steps} of the {done} steps that are done, and "
                f"steps cannot be taken back; {remedy}"
            )
        if per_epoch is None and old["epochs"] is None:
            raise RunError(
                f"{where}: this run does not record how many steps an epoch has; give "
                f"phases.{name}.steps, {done} or more"
            )
        if per_epoch is None and new["epochs"] < old["epochs"]:
            raise RunError(
                f"{where}: {new['epochs']:g} would be fewer than it began with "
                f"({_in_words(old)}); {remedy}"
            )


def _redone(path: Path, first: str, later: list[str]) -> str:
    """Say which results come again."""
    again = [f"the phase {name}" for name in later]
    if any(path.glob("benchmarks/phase*")):
        again.append(f"the measurements from {first} on")
    if (path / "fused.json").exists():
        again.append("the fused model")
    if (path / "report.html").exists():
        again.append("the report")
    return f"; redone, because they come after it: {', '.join(again)}" if again else ""


def _has_begun(path: Path, label: str) -> bool:
    return (path / label).exists() or (path / "work" / label).exists()


def _remove_results(path: Path, extension: Extension) -> None:
    """Remove measurements, metrics, times and reports that come after the phase that goes on."""
    patterns = [*_ALL_RESULTS, *(f"benchmarks/{label}.json*" for label in extension.measured_again)]
    for pattern in patterns:
        for file in path.glob(pattern):
            file.unlink()

    names = {label.partition("_")[2] for label in extension.obsolete}
    for log in (path / "metrics.jsonl", path / TIMES):
        if log.exists():
            lines = log.read_bytes().splitlines(keepends=True)
            write_bytes(log, b"".join(line for line in lines if _phase_of(line) not in names))


def _remove_folder(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _phase_of(line: bytes) -> str | None:
    """Return the phase of a line of a log; None: it has none, or is damaged, as is reported later."""
    try:
        phase = json.loads(line)["phase"]
    except (ValueError, TypeError, KeyError):
        return None
    return str(phase)


def _phases(recipe: str) -> dict[str, JsonObject]:
    parsed = yaml.safe_load(recipe)
    phases = parsed.get("phases") if isinstance(parsed, Mapping) else None
    return dict(phases) if isinstance(phases, Mapping) else {}


def _differ(before: str, after: str, sections: tuple[str, ...]) -> bool:
    old, new = yaml.safe_load(before), yaml.safe_load(after)
    return any(old.get(section) != new.get(section) for section in sections)


def _length(phase: JsonObject) -> JsonObject:
    return {key: phase[key] for key in _LENGTH}


def _in_words(phase: JsonObject) -> str:
    key, count = next((key, phase[key]) for key in _LENGTH if phase[key] is not None)
    return f"{count:g} {key if count != 1 else key.removesuffix('s')}"
