"""The values of row keys that a recipe names: to order rows, to divide them, to hold some out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from forty2.data.row_keys import named_keys
from forty2.data.strata import LEVELS, Cell
from forty2.errors import DataError
from forty2.files import JsonObject

NO_VALUE = "(none)"
"""Stratum of the rows that lack its key."""
_SCALES = {word: place for words in LEVELS.values() for place, word in enumerate(words)}
_MOST_NAMED = 8


class KeyUse(NamedTuple):
    """Keys of a phase's rows by which it orders, divides or holds out rows."""

    by: str | None = None
    """Key that says how hard a row is; None: rows are not ordered by a key."""
    strata: tuple[str, ...] = ()
    """Keys whose values divide the rows into strata."""
    hold_out: Mapping[str, tuple[object, ...]] = {}
    """Values of the rows that are held out, by key; a row must match all keys."""

    @property
    def keys(self) -> frozenset[str]:
        """All keys that are read."""
        return frozenset(
            {*self.strata, *self.hold_out, *([self.by] if self.by is not None else [])}
        )


class RowValues:
    """Takes in rows, and keeps the values by which the training rows are ordered and divided."""

    def __init__(self, use: KeyUse) -> None:
        self._use = use
        self._wanted = {key: set(map(as_text, values)) for key, values in use.hold_out.items()}
        self._difficulty: dict[str, float] = {}
        self._strata: dict[str, Cell] = {}
        self._having: Counter[str] = Counter()
        """Rows that have each of the keys."""
        self._found: dict[str, Counter[str]] = {key: Counter() for key in use.hold_out}
        """Values of the keys of `hold_out`."""
        self._keys = ""

    def is_held_out(self, row: JsonObject) -> bool:
        """Return whether a row is held out; it then needs no other key."""
        for key, found in self._found.items():
            if key in row:
                found[as_text(row[key])] += 1
        return bool(self._wanted) and all(
            key in row and as_text(row[key]) in wanted for key, wanted in self._wanted.items()
        )

    def add(self, row: JsonObject, origin: str) -> None:
        """Take in a training row.

        Raises:
            DataError: it lacks the key that rows are ordered by, or has no number or known word there.
        """
        use = self._use
        self._keys = self._keys or named_keys(row)
        self._having.update(key for key in use.strata if key in row)
        if use.strata:
            values = (as_text(row[key]) if key in row else NO_VALUE for key in use.strata)
            self._strata[origin] = tuple(values)
        if use.by is not None:
            if use.by not in row:
                raise DataError(
                    f"{origin}: has no {use.by!r}, by which the curriculum orders rows; it has "
                    f"{named_keys(row)}"
                )
            self._difficulty[origin] = _difficulty(row[use.by], use.by, origin)

    def check(self, source: str) -> None:
        """Refuse a stratum that no row has.

        Raises:
            DataError: no training row has one of the keys.
        """
        for key in self._use.strata:
            if not self._having[key]:
                raise DataError(
                    f"{source}: no row has {key!r}, by which the batches are stratified; they have "
                    f"{self._keys}"
                )

    def check_held_out(self, source: str) -> None:
        """Refuse a value of `hold_out` that no row has: it would hold nothing out.

        Raises:
            DataError: there is one.
        """
        for key, wanted in self._wanted.items():
            absent = sorted(wanted - self._found[key].keys())
            if absent:
                raise DataError(
                    f"{source}: hold_out: no row has {key}: {', '.join(absent)}; remove it, or name one of "
                    f"{_listed(self._found[key])}"
                )

    def nothing_held_out(self, source: str) -> DataError:
        """Make the error for values of `hold_out` that no row has."""
        wanted = ", ".join(
            f"{key}: {'/'.join(map(as_text, values))}" for key, values in self._use.hold_out.items()
        )
        there = "; ".join(f"{key}: {_listed(found)}" for key, found in self._found.items())
        return DataError(f"{source}: no row to hold out with {wanted}; there are {there}")

    def difficulty(self, origins: Sequence[str]) -> list[float] | None:
        """Return how hard each row is, by its origin; None: rows are not ordered by a key."""
        return None if self._use.by is None else [self._difficulty[origin] for origin in origins]

    def strata(self, origins: Sequence[str]) -> list[Cell] | None:
        """Return the stratum of each row, by its origin; None: rows are not divided."""
        return [self._strata[origin] for origin in origins] if self._use.strata else None


def as_text(value: object) -> str:
    """Write a value as one would in a recipe or a table, so that 3, 3.0 and "3" are the same."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _difficulty(value: object, key: str, origin: str) -> float:
    if isinstance(value, str) and value.strip().lower() in _SCALES:
        return float(_SCALES[value.strip().lower()])
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        scales = "; ".join(", ".join(words) for words in LEVELS.values())
        raise DataError(
            f"{origin}: {key} is {str(value)[:40]!r}; to order rows it must be a number, or a word of "
            f"{scales}"
        )
    return number


def _listed(found: Counter[str]) -> str:
    named = [f"{value[:40]} ({count:,})" for value, count in found.most_common(_MOST_NAMED)]
    more = len(found) - _MOST_NAMED
    return ", ".join([*named, *([f"{more:,} more"] if more > 0 else [])]) or "no rows with that key"
