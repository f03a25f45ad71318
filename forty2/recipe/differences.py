"""Differences between recipes, key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import yaml

ABSENT = "absent"
"""In place of the value of a key that a recipe does not have."""
_LONGEST = 60


class Difference(NamedTuple):
    """A key whose value differs."""

    key: str
    """Path of the key, `phases.sft.lr`."""
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.key}: {_cut(self.before)} → {_cut(self.after)}"


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[Difference]:
    """Yield the keys in which two recipes differ, in the order of the first one."""
    old, new = dict(flattened(before)), dict(flattened(after))
    for key in {**old, **new}:
        values = old.get(key, ABSENT), new.get(key, ABSENT)
        if values[0] != values[1]:
            yield Difference(key, *values)


def flattened(value: object, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as paths of keys joined by dots, and values as YAML on one line.

    Raises:
        ValueError: it is no mapping.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flattened(inner, f"{at}.{key}" if at else str(key))
    elif not at:
        raise ValueError("it holds no mapping")
    else:
        yield at, on_one_line(value)


def on_one_line(value: object) -> str:
    """Return a value as YAML on one line, as an override takes it."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
