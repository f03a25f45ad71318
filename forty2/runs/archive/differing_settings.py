"""What differs between the settings of runs, short enough to be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from forty2.recipe.differences import ABSENT

_NAMED_BY = {"train": "data", "valid": "valid"}
"""Key of a phase that names its rows, by the side under which their hash is recorded."""
_FEW = 3
"""Most keys of a section that are written out."""
Settings = Mapping[str, str]
"""Values of one run as YAML on one line, by dotted key."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting that is not the same in all runs."""

    key: str
    values: list[str]
    """Value in each run, as YAML on one line; `ABSENT` where a run has none."""


@dataclass(frozen=True, slots=True)
class Differences:
    """The differing settings of runs."""

    every: list[Setting]
    """Every key, hashes included."""
    short: list[Setting]
    """Those that tell something by themselves."""
    remarks: list[str]
    """Sentences on sections that not every run has, and on files that changed under their names."""


def find_differences(names: Sequence[str], settings: Sequence[Settings]) -> Differences:
    """Find the settings that differ.

    Args:
        names: of the runs, for the remarks.
        settings: of each run; hashes of rows are below `rows`, others end with `_sha256`.
    """
    keys = dict.fromkeys(key for of_run in settings for key in of_run)
    values = {key: [of_run.get(key, ABSENT) for of_run in settings] for key in keys}
    differing = {key: each for key, each in values.items() if len({*each}) > 1}
    short: list[Setting] = []
    remarks: list[str] = []
    sections = _sections(differing, settings)
    for key, each in differing.items():
        section = sections.get(key)
        if _is_hash(key):
            remarks += _changed_under_its_name(key, differing, sections)
        elif section is None:
            short.append(Setting(key, each))
        elif key == next(one for one in differing if sections.get(one) == section):
            below = [dict(_below(section, of_run)) for of_run in settings]
            if max(map(len, below)) <= _FEW:
                texts = [_written(section, *both) for both in zip(below, settings, strict=True)]
                short.append(Setting(section, texts))
            else:
                having = [place for place, keys_below in enumerate(below) if keys_below]
                remarks.append(f"{section}: only in {', '.join(names[place] for place in having)}")
                short += _among(having, differing, section)
    return Differences([Setting(key, each) for key, each in differing.items()], short, remarks)


def _sections(differing: Mapping[str, object], settings: Sequence[Settings]) -> dict[str, str]:
    """Return for each key the outermost section around it that not every run has, where there is one."""
    found = {}
    for key in differing:
        parts = key.split(".")
        for depth in range(1, len(parts) + 1):
            section = ".".join(parts[:depth])
            has = [any(True for _ in _below(section, of_run)) for of_run in settings]
            if any(has) and not all(has):
                found[key] = section
                break
    return found


def _below(section: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield the settings below a section, by their keys in it."""
    start = f"{section}."
    return (
        (key.removeprefix(start), text) for key, text in settings.items() if key.startswith(start)
    )


def _written(section: str, below: Mapping[str, str], settings: Settings) -> str:
    """Write a small section on one line."""
    if not below:
        return settings.get(section, ABSENT)
    return "{" + ", ".join(f"{key}: {text}" for key, text in below.items()) + "}"


def _among(
    having: Sequence[int], differing: Mapping[str, list[str]], section: str
) -> list[Setting]:
    """List the keys of a section that differ among the runs that have it."""
    return [
        Setting(key, each)
        for key, each in differing.items()
        if key.startswith(f"{section}.") and len({each[place] for place in having}) > 1
    ]


def _is_hash(key: str) -> bool:
    return key.startswith("rows.") or key.endswith("_sha256")


def _changed_under_its_name(
    key: str, differing: Mapping[str, object], sections: Mapping[str, str]
) -> list[str]:
    """Say that a file has other contents in each run; nothing where another setting says so."""
    phase, _, side = key.removeprefix("rows.").rpartition(".")
    named = f"phases.{phase}.{_NAMED_BY.get(side, side)}"
    if not key.startswith("rows."):
        named = key.removesuffix("_sha256")
    if named in differing or any(found == f"phases.{phase}" for found in sections.values()):
        return []
    return [f"{named}: the same name, but other contents"]
