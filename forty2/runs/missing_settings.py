"""Settings that a run began with and that the command to go on leaves out."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import yaml

from forty2.errors import RunError
from forty2.recipe.differences import ABSENT, Difference, differences
from forty2.recipe.overrides import COUNTS_WITHIN_STEPS, LENGTHS
from forty2.recipe.reading import to_yaml
from forty2.recipe.schema import Recipe
from forty2.runs.context import reread
from forty2.runs.extending import FREE, JOURNAL, REPORTING, fixed_differences
from forty2.runs.folder import has_results


def refuse_missing_settings(
    path: Path, recipe: Recipe, source: Path, overridden: Collection[str]
) -> None:
    """Refuse to go on with a run without the overrides that it began with.

    They are known to be missing where the recipe's file has not changed since, and yet the recipe is
    another.

    Args:
        source: file of the recipe; it need not exist, as that of a packaged recipe.
        overridden: keys that are overridden now, as paths.

    Raises:
        RunError: with the overrides that are missing.
    """
    stored = path / "recipe.yaml"
    begun = (path / "run.json").exists() and stored.exists() and has_results(path)
    if not begun or (path / JOURNAL).exists():
        return
    if source.is_file() and source.stat().st_mtime > stored.stat().st_mtime:
        return
    try:
        before = yaml.safe_load(reread(stored, recipe, path))
    except RunError:  # said when the run is opened
        return
    after = yaml.safe_load(to_yaml(recipe, path))
    fixed = fixed_differences(path, before, after)
    if any(_sets(key, one.key) for key in overridden for one in fixed):
        return  # refused when the run is opened
    settings = _missing([*differences(before, after)], [*overridden, *REPORTING])
    if settings:
        raise RunError(
            f"{path}: goes by {', '.join(settings)}, which is not set now; to go on with it: "
            f"`resume=True` {' '.join(f'`overrides={setting}`' for setting in settings)}; to change "
            "it, set the new value with `overrides`"
        )


def _missing(found: list[Difference], overridden: Collection[str]) -> list[str]:
    """Return the overrides that undo these differences; none if overrides cannot, or need not."""
    found = [one for one in found if not any(_sets(key, one.key) for key in overridden)]
    if all(_within(one.key, free) for one in found for free in FREE):
        return []  # only what comes after all phases differs
    before = {one.key: one.before for one in found if one.before != ABSENT}
    implied = {one.key for one in found if one.before != ABSENT and _is_implied(one, before)}
    for one in found:
        absent = one.before == ABSENT
        if "/" in one.before or (absent and not any(_related(one.key, key) for key in before)):
            return []  # a file, or a key that the recipe did not have
    return [f"{key}={value}" for key, value in before.items() if key not in implied]


def _is_implied(one: Difference, before: dict[str, str]) -> bool:
    """Return whether a value follows from the override of the phase's length."""
    phase, _, key = one.key.rpartition(".")
    lengths = [before.get(f"{phase}.{length}", "null") for length in LENGTHS]
    if key in LENGTHS:
        return one.before == "null" and lengths != ["null", "null"]
    return key in COUNTS_WITHIN_STEPS and one.before == lengths[0] != "null"


def _sets(overridden: str, key: str) -> bool:
    """Return whether an override decides a key: its own, one above or below, or of the length."""
    phase, _, last = overridden.rpartition(".")
    keys = [overridden]
    if last in LENGTHS:
        keys = [f"{phase}.{name}" for name in (*LENGTHS, *COUNTS_WITHIN_STEPS)]
    return any(_related(name, key) for name in keys)


def _related(one: str, other: str) -> bool:
    return _within(one, other) or _within(other, one)


def _within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")
