"""What differs between two recipes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from forty2.files import JsonObject

ABSENT = object()
"""In place of the value of a key that one of the recipes does not have."""


class Difference(NamedTuple):
    """A key whose value differs."""

    key: str
    """Path of the key, `phases.sft.lr`."""
    before: object
    after: object

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.before)} → {_shown(self.after)}"


def differences(before: JsonObject, after: JsonObject, at: str = "") -> Iterator[Difference]:
    """Yield the keys in which two recipes differ, in the order of the first one.

    A section that only one of them has is one difference.
    """
    for key in {**before, **after}:
        old, new = before.get(key, ABSENT), after.get(key, ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(dict(old), dict(new), f"{at}{key}.")
        elif old != new:
            yield Difference(f"{at}{key}", old, new)


def _shown(value: object) -> str:
    if value is ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"
