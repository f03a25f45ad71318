"""Types that all checks of the lint share: a row to check, a fault in rows, a finding."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from forty2.data.record_texts import answer_of, prompt_of, rejected_of
from forty2.data.records import Record
from forty2.files import JsonObject

Level = Literal["error", "warning"]
SplitName = Literal["train", "valid"]
_FEW = 5
"""Most rows that a fault names."""
_MOST_REASONS = 20
INDEX = re.compile(r"\[\d+\]")
"""An index in a message."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of fault and the rows that have it."""

    check: str
    level: Level
    message: str
    count: int
    """Number of rows with this fault; for a fault of the whole set, of rows looked at."""
    origins: tuple[str, ...]
    """Origins of the first few rows; empty for a fault of the whole set."""


@dataclass(frozen=True, slots=True)
class CheckedRow:
    """A record with its texts, as the checks read it."""

    index: int
    """Index among all rows of both splits, from 0."""
    split: SplitName
    record: Record
    prompt: str
    answer: str
    """Text to be learned; "" if there is none."""
    rejected: str
    """Text to be avoided; "" if there is none."""


def checked_row(record: Record, index: int, split: SplitName) -> CheckedRow:
    """Look up a record's texts once for all checks."""
    return CheckedRow(
        index, split, record, prompt_of(record), answer_of(record), rejected_of(record)
    )


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault, with the indices of its rows."""

    check: str
    level: Level
    message: str
    count: int
    """Number of rows with this fault; for a fault of the whole set, of rows looked at."""
    first: tuple[int, ...] = ()
    """Indices of the first few rows; empty for a fault of the whole set."""

    @classmethod
    def in_rows(
        cls, check: str, level: Level, message: str, rows: Sequence[int] | npt.NDArray[np.intp]
    ) -> Fault:
        """Make a fault of the rows with these indices, ascending."""
        return cls(check, level, message, len(rows), tuple(int(index) for index in rows[:_FEW]))


class Check(Protocol):
    """Takes in every row once, then yields the faults.

    It stores little of each row, so that files larger than memory can be checked.
    """

    def add(self, row: CheckedRow) -> None:
        """Take in one row."""

    def faults(self) -> Iterator[Fault]:
        """Yield the faults of all rows taken in so far."""


class RowFaults:
    """Faults of single rows by kind, in the order in which the kinds were first found.

    A row counts once for each kind.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, Level, str], Fault] = {}
        self._last: dict[tuple[str, Level, str], int] = {}

    def add(self, check: str, level: Level, message: str, index: int) -> None:
        """Note a fault of the row that is being checked."""
        kind = check, level, message
        if self._last.get(kind) == index:
            return
        self._last[kind] = index
        fault = self._found.get(kind, Fault(check, level, message, 0))
        first = (*fault.first, index) if len(fault.first) < _FEW else fault.first
        self._found[kind] = replace(fault, count=fault.count + 1, first=first)

    def faults(self) -> Iterator[Fault]:
        """Yield one fault for each kind."""
        yield from self._found.values()


class Reasons:
    """Errors about rows that cannot be used, counted by their reason, which is the text after the origin.

    Numbers in brackets are left out of a reason, because they differ from row to row.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.first = ""
        """The first error."""
        self._origins: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, message: str) -> None:
        """Take in an error that begins with the row's origin."""
        origin, _, reason = message.partition(": ")
        reason = INDEX.sub("[…]", reason)
        if reason not in self._counts and len(self._counts) == _MOST_REASONS:
            reason = "other reasons"
        self.rows += 1
        self.first = self.first or message
        self._counts[reason] += 1
        origins = self._origins.setdefault(reason, [])
        if len(origins) < _FEW:
            origins.append(origin)

    def listed(self) -> list[JsonObject]:
        """Return reason, rows and first origins of each reason, the most frequent first."""
        return [
            {"reason": reason, "rows": count, "first": self._origins[reason]}
            for reason, count in self._counts.most_common()
        ]


class Origins:
    """Origins in little memory: the text before the line number once for each file, then the numbers."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._prefixes: list[str] = []
        self._numbers = array("q")

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, origin: str) -> int:
        """Store one origin and return its index."""
        prefix = origin.rstrip("0123456789")
        if not self._prefixes or self._prefixes[-1] != prefix:
            self._starts.append(len(self._numbers))
            self._prefixes.append(prefix)
        self._numbers.append(int(origin[len(prefix) :] or -1))
        return len(self._numbers) - 1

    def __getitem__(self, index: int) -> str:
        prefix = self._prefixes[bisect_right(self._starts, index) - 1]
        return f"{prefix}{self._numbers[index] if self._numbers[index] >= 0 else ''}"
