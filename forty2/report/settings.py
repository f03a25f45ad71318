"""The recipe of a run for a reader: its data files, and the settings that are not the defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import yaml

from forty2.recipe.keys import Key, sections
from forty2.report.json_records import visible
from forty2.report.markdown import Table
from forty2.report.run_types import PhaseRecord


class RecipeTables(NamedTuple):
    """The tables of a recipe in a report."""

    data: Table
    """Data files of each phase, and their rows."""
    changed: Table
    """Settings that have no default or differ from it."""


def recipe_tables(recipe: str, phases: Sequence[PhaseRecord]) -> RecipeTables | None:
    """Make the tables of a recipe.

    Args:
        recipe: the text of recipe.yaml.
        phases: the finished phases, which know the number of rows.

    Returns:
        None if the text is no recipe: the report then shows only the text.
    """
    try:
        content = visible(yaml.safe_load(recipe))  # YAML may spell out what the text must not hold
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    sections_of_phases = content.get("phases") if isinstance(content, Mapping) else None
    if not isinstance(sections_of_phases, Mapping):
        return None
    finished = {phase.name: phase for phase in phases}
    data = [
        (f"{name}, {key}", _shown(phase[key]), _count(finished.get(str(name)), key))
        for name, phase in sections_of_phases.items()
        if isinstance(phase, Mapping)
        for key in ("data", "valid")
        if phase.get(key) is not None
    ]
    return RecipeTables(
        Table(("Phase", "File", "Rows"), data),
        Table(("Setting", "Value", "Default"), list(_changed(content))),
    )


def _count(phase: PhaseRecord | None, key: str) -> str:
    rows = None if phase is None else phase.rows if key == "data" else phase.valid_rows
    return "–" if rows is None else f"{rows:,}"


def _changed(recipe: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """Yield path, value and default of every setting that is not the default."""
    known = {section.name: {key.name: key for key in section.keys} for section in sections()}
    phases = recipe["phases"]
    top = {key: value for key, value in recipe.items() if key not in ("version", "phases")}
    yield from _differing(top, "recipe", "", known)
    if isinstance(phases, Mapping):
        for name, phase in phases.items():
            if isinstance(phase, Mapping):
                yield from _differing(phase, str(phase.get("objective")), f"{name}.", known)


def _differing(
    values: Mapping[str, object],
    section: str,
    at: str,
    known: Mapping[str, Mapping[str, Key]],
) -> Iterator[tuple[str, str, str]]:
    keys = known.get(section, {})
    for name, value in values.items():
        key = keys.get(name)
        default = key.default if key is not None else None
        if isinstance(value, Mapping) and (name in known or not value):
            yield from _differing(value, name, f"{at}{name}.", known)
        elif _shown(value) != default:
            required = key is None or key.required
            yield f"{at}{name}", _shown(value), "none" if required else default or "its own"


def _shown(value: object) -> str:
    """Write a value as the reference of recipes writes defaults."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
