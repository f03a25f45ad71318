"""The scored items of a failure loop's half `find`: what was asked, and whether the reply passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from forty2.data.record_texts import turn_text
from forty2.data.records import Message
from forty2.errors import DataError
from forty2.failures.folder import TESTSET, VERDICTS, read_half, read_verdicts


class ScoredItem(NamedTuple):
    """An item with a verdict of pass or fail."""

    id: str
    stratum: str
    group: int
    """Items of one group nearly repeat each other."""
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
    """Read the half `find` and its verdicts; the other half is compared with its hash, and left.

    Raises:
        RunError: a file is missing, damaged or changed.
        DataError: the verdicts are of another test set, or a prompt has no user message.
    """
    asked = {item.id: item for item in read_half(folder, "find")}
    verdicts = {name: found.verdict for name, found in read_verdicts(folder).items()}
    for name, verdict in verdicts.items():
        if name not in asked:
            raise DataError(
                f"{folder / VERDICTS}: the half `find` of {TESTSET} has no item {name}, so these "
                "are the verdicts of another test set; run forty2 failures find again"
            )
        if verdict not in ("pass", "fail", "unscored"):
            raise DataError(
                f"{folder / VERDICTS}: the verdict of {name} is {verdict!r}, not pass, fail or "
                "unscored; run forty2 failures find again"
            )
    items = [
        ScoredItem(
            name,
            asked[name].stratum,
            asked[name].group,
            last_user_text(asked[name].messages, f"{folder / TESTSET}: {name}"),
            verdicts[name] == "fail",
        )
        for name in sorted(asked)
        if verdicts.get(name) in ("pass", "fail")
    ]
    return ScoredHalf(items, _strata(Counter(item.stratum for item in asked.values()), items))


def _strata(asked: Counter[str], items: Sequence[ScoredItem]) -> list[Stratum]:
    """Count verdicts by stratum, of which `asked` says how many items each has."""
    scored = Counter(item.stratum for item in items)
    failed = Counter(item.stratum for item in items if item.failed)
    return [
        Stratum(name, scored[name] - failed[name], failed[name], asked[name] - scored[name])
        for name in sorted(asked)
    ]


def last_user_text(messages: Sequence[Message], where: str) -> str:
    """Return what the last user message says.

    Raises:
        DataError: there is none.
    """
    for turn in reversed(messages):
        if turn["role"] == "user":
            return turn_text(turn)
    raise DataError(f"{where}: has no user message; make the test set again")
