"""The scored items of a failure loop's half `find`: what was asked, and whether the reply passed.

The other half, `untouched`, is passed over line by line: nothing here keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from forty2.data.record_texts import turn_text
from forty2.data.records import Message
from forty2.errors import DataError
from forty2.files import JsonObject

TESTSET, VERDICTS = "testset.jsonl", "verdicts.jsonl"
_AGAIN = "run forty2 failures find again"


class ScoredItem(NamedTuple):
    """An item with a verdict of pass or fail."""

    id: str
    stratum: str
    text: str
    """The last user message."""
    failed: bool


class Stratum(NamedTuple):
    """Counts of one stratum."""

    name: str
    passed: int
    failed: int
    unscored: int
    """Items without a verdict of pass or fail."""


class ScoredHalf(NamedTuple):
    """What the half `find` holds."""

    items: list[ScoredItem]
    """Scored ones, in the order of their ids: no result depends on the order of rows."""
    strata: list[Stratum]
    """In alphabetical order."""

    @property
    def failures(self) -> int:
        """Number of items that failed."""
        return sum(item.failed for item in self.items)


def read_scored(folder: Path) -> ScoredHalf:
    """Read the half `find` and its verdicts.

    Raises:
        DataError: a file is missing or damaged, an id stands twice, or the verdicts are of another
            test set; the message names file and line.
    """
    asked: dict[str, tuple[str, str]] = {}
    others: set[str] = set()
    for where, row in _rows(folder / TESTSET, "forty2 failures testset"):
        name, half = str(row.get("id")), row.get("half")
        if name in asked or name in others:
            raise DataError(f"{where}: the id {name} stands twice; make the test set again")
        if half == "untouched":
            others.add(name)
        elif half == "find":
            asked[name] = (str(row.get("stratum")), last_user_text(row.get("messages"), where))
        else:
            raise DataError(f"{where}: half must be find or untouched; make the test set again")
    verdicts: dict[str, str] = {}
    for where, row in _rows(folder / VERDICTS, f"forty2 failures find {folder}"):
        name, verdict = str(row.get("id")), row.get("verdict")
        if name not in asked and name not in others:
            raise DataError(
                f"{where}: {TESTSET} has no item {name}, so these are the verdicts of another test "
                f"set; {_AGAIN}"
            )
        if verdict not in ("pass", "fail", "unscored"):
            raise DataError(f"{where}: verdict must be pass, fail or unscored; {_AGAIN}")
        if name in verdicts:
            raise DataError(f"{where}: the item {name} has two verdicts; {_AGAIN}")
        verdicts[name] = str(verdict)
    return _scored(asked, verdicts)


def _scored(asked: dict[str, tuple[str, str]], verdicts: dict[str, str]) -> ScoredHalf:
    items = [
        ScoredItem(name, *asked[name], verdicts[name] == "fail")
        for name in sorted(asked)
        if verdicts.get(name) in ("pass", "fail")
    ]
    strata = []
    for stratum in sorted({stratum for stratum, _ in asked.values()}):
        inside = [item.failed for item in items if item.stratum == stratum]
        total = sum(other == stratum for other, _ in asked.values())
        failed = sum(inside)
        strata.append(Stratum(stratum, len(inside) - failed, failed, total - len(inside)))
    return ScoredHalf(items, strata)


def last_user_text(messages: object, where: str) -> str:
    """Return what the last user message says.

    Raises:
        DataError: there is none.
    """
    turns: Sequence[Message] = messages if isinstance(messages, list) else []
    for turn in reversed(turns):
        if isinstance(turn, dict) and turn.get("role") == "user":
            return turn_text(turn)
    raise DataError(f"{where}: messages holds no user message; make the test set again")


def _rows(path: Path, maker: str) -> Iterator[tuple[str, JsonObject]]:
    """Yield each row of a file with its place."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("no JSON object")
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{where}: not readable: {error}; make it again") from error
                yield where, row
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; make it with {maker}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
