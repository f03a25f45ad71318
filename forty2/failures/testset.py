"""A test set: questions by stratum, none of them trained on, none twice, in two halves.

What the makers of such sets did wrong is refused by construction:
  - a question that the training data holds, as a prompt, as a near copy or by 13 words in a row, is
    dropped, and the record says which file holds how many;
  - of questions that nearly repeat each other, the first is kept, and those that still resemble each
    other are in one half: no twin of a question that is looked at is among those to test with;
  - a stratum with too few questions is printed with what it lacks, not filled up with others.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forty2.data.checks.near_duplicates import LOOSE_BANDS, NearDuplicates
from forty2.data.joining import Joining
from forty2.data.record_texts import turn_text
from forty2.data.splitting import seeded_order
from forty2.data.strata import largest_remainder, round_robin
from forty2.errors import DataError
from forty2.failures.folder import (
    HALVES,
    Half,
    Item,
    halves_sha256,
    item_id,
    refuse_if_made,
    write_testset,
)
from forty2.failures.sources import BUILTIN, Candidate, OpenedSource, open_source
from forty2.failures.training_data import TrainingSearch, about_file, training_files
from forty2.files import JsonObject
from forty2.progress import Progress, silent

STRATA: Mapping[str, int] = {
    "code": 12_000,
    "reasoning": 15_000,
    "mathematics": 8_000,
    "tools": 6_000,
    "other": 9_000,
}
"""Items of each stratum by default."""
SIZE = sum(STRATA.values())
TWINS = 0.6
"""Similarity of word trigrams from which questions are kept in one half."""
_ROUNDS = 8
"""Times that questions are drawn again for those that were dropped."""
_MORE = 1.1


@dataclass(frozen=True, kw_only=True)
class TestsetSettings:
    """What to make a test set of."""

    __test__ = False  # it is no test, whatever pytest makes of its name
    sources: Sequence[str] = (BUILTIN,)
    """As `open_source` takes them; a stratum's items are drawn from all that have any, in turn."""
    strata: Mapping[str, int] = field(default_factory=lambda: dict(STRATA))
    """Number of items by stratum, or their proportions if there is a size."""
    size: int | None = None
    """Items in all; None: the sum of the strata."""
    disjoint_from: Sequence[str] = ()
    """Files and runs whose training rows hold no question of the set."""
    seed: int = 42

    def quotas(self) -> dict[str, int]:
        """Return the number of items wanted of each stratum.

        Raises:
            DataError: a number is not positive, or there are fewer than two items.
        """
        for name, count in self.strata.items():
            if not name.strip() or count < 0:
                raise DataError(f"stratum {name!r}: give a name and a number of items, NAME=COUNT")
        total = sum(self.strata.values())
        size = total if self.size is None else self.size
        if min(total, size) < 2:
            raise DataError("a test set needs two items or more, one for each half")
        return dict(self.strata) if size == total else largest_remainder(self.strata, size)


def make_testset(
    folder: str | Path, settings: TestsetSettings, progress: Progress = silent
) -> JsonObject:
    """Draw the questions, drop what must not be there, split them and write both files.

    Returns:
        The record of the test set, as in `testset.json`.

    Raises:
        DataError: there is a test set in the folder, a source cannot be read, or too few are left.
        RunError: the folder cannot be written.
    """
    folder = Path(folder)
    refuse_if_made(folder)
    quotas = settings.quotas()
    sources = [open_source(name, quotas, settings.seed) for name in settings.sources]
    pool = _Pool(quotas, sources, settings, progress)
    pool.fill()
    items = _split(pool.chosen(), settings.seed)
    if len({item.half for item in items}) < len(HALVES):
        raise DataError(
            f"{len(items)} questions are left, which do not make two halves; name more sources"
        )
    about = _about(items, quotas, sources, settings, pool)
    write_testset(folder, items, about)
    return about


def question_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text by which questions are compared: all turns without the system message.

    Many questions share a system message; two that differ in it alone are the same question.
    """
    return "\n".join(turn_text(m) for m in messages if m["role"] != "system")


def text_key(text: str) -> bytes:
    """Hash a question without its case and spacing."""
    return hashlib.blake2b(" ".join(text.casefold().split()).encode(), digest_size=12).digest()


class _Pool:
    """Questions drawn so far, and which of them were dropped."""

    def __init__(
        self,
        quotas: Mapping[str, int],
        sources: Sequence[OpenedSource],
        settings: TestsetSettings,
        progress: Progress,
    ) -> None:
        self._quotas, self._progress = quotas, progress
        self._waiting: dict[str, Iterator[Candidate]] = {
            stratum: round_robin([source.of(stratum) for source in sources]) for stratum in quotas
        }
        self._drawn: list[Candidate] = []
        self._is_left: list[bool] = []
        self._seen: set[bytes] = set()
        self._near = NearDuplicates()
        self._files = [file for name in settings.disjoint_from for file in training_files(name)]
        self.duplicates: Counter[str] = Counter()
        self.near_duplicates: Counter[str] = Counter()
        self.searched: dict[str, JsonObject] = {
            file.name: {**about_file(file), "rows": 0, "dropped": {}} for file in self._files
        }

    def fill(self) -> None:
        """Draw until every stratum has its items, or its sources have no more."""
        for _ in range(_ROUNDS):
            before = len(self._drawn)
            for stratum, quota in self._quotas.items():
                missing = quota - self._left()[stratum]
                self._draw(stratum, math.ceil(missing * _MORE) if missing > 0 else 0)
            if len(self._drawn) == before:
                break
            self._drop_near_duplicates()
            self._drop_trained(before)
            done = sum(min(n, self._quotas[s]) for s, n in self._left().items())
            self._progress("questions", done, sum(self._quotas.values()), {})

    def _left(self) -> Counter[str]:
        left = zip(self._drawn, self._is_left, strict=True)
        return Counter(row.stratum for row, is_left in left if is_left)

    def _draw(self, stratum: str, wanted: int) -> None:
        while wanted > 0:
            row = next(self._waiting[stratum], None)
            if row is None:
                return
            text = question_text(row.messages)
            key = text_key(text)
            if key in self._seen:
                self.duplicates[stratum] += 1
                if self.duplicates[stratum] > 10 * self._quotas[stratum] + 1000:
                    return  # a maker of questions that has no others
                continue
            self._seen.add(key)
            self._drawn.append(row)
            self._is_left.append(True)
            self._near.add(text)
            wanted -= 1

    def _drop_near_duplicates(self) -> None:
        for group in self._near.groups():
            for place in group[1:].tolist():
                if self._is_left[place]:
                    self._is_left[place] = False
                    self.near_duplicates[self._drawn[place].stratum] += 1

    def _drop_trained(self, start: int) -> None:
        """Search the training data for the questions from a place on."""
        places = [n for n in range(start, len(self._drawn)) if self._is_left[n]]
        if not self._files or not places:
            return
        search = TrainingSearch([self._drawn[n].messages for n in places])
        for file in self._files:
            overlap = search.search(file)
            record = self.searched[file.name]
            record["rows"] = overlap.rows
            for place, how in overlap.hits.items():
                if self._is_left[places[place]]:
                    self._is_left[places[place]] = False
                    record["dropped"][how] = record["dropped"].get(how, 0) + 1

    def chosen(self) -> list[Candidate]:
        """Return the first questions of each stratum that are left, as many as are wanted."""
        taken: Counter[str] = Counter()
        found = []
        for row, is_left in zip(self._drawn, self._is_left, strict=True):
            if is_left and taken[row.stratum] < self._quotas[row.stratum]:
                taken[row.stratum] += 1
                found.append(row)
        return found


# --- halves ---------------------------------------------------------------------------------------


def _split(rows: Sequence[Candidate], seed: int) -> list[Item]:
    """Give each question its group and half, and put all into a seeded order."""
    groups = twin_groups([question_text(row.messages) for row in rows])
    halves = _halves(rows, groups, seed)
    items = [
        Item(
            id=item_id(row.messages, row.verifier, row.reference),
            stratum=row.stratum,
            messages=row.messages,
            verifier=row.verifier,
            reference=row.reference,
            half=halves[group],
            group=group,
            source=row.source,
        )
        for row, group in zip(rows, groups, strict=True)
    ]
    return seeded_order(items, f"{seed} order")


def twin_groups(texts: Sequence[str]) -> list[int]:
    """Number the groups of questions that resemble each other, directly or through others."""
    joining, near = Joining(len(texts)), NearDuplicates(TWINS, LOOSE_BANDS)
    for text in texts:
        near.add(text)
    for alike in near.groups():
        for place in alike[1:].tolist():
            joining.join(int(alike[0]), place)
    numbers = {place: n for n, group in enumerate(joining.groups()) for place in group}
    return [numbers[place] for place in range(len(texts))]


def _halves(rows: Sequence[Candidate], groups: Sequence[int], seed: int) -> dict[int, Half]:
    """Choose each group's half, the largest groups first, so that every stratum is divided evenly."""
    members: dict[int, Counter[str]] = defaultdict(Counter)
    for row, group in zip(rows, groups, strict=True):
        members[group][row.stratum] += 1
    order = sorted(seeded_order(members, f"{seed} halves"), key=lambda g: -members[g].total())
    excess: Counter[str] = Counter()
    """Items of each stratum that the half to find in has more than the untouched one."""
    halves: dict[int, Half] = {}
    for group in order:
        ahead = sum(excess[stratum] * n for stratum, n in members[group].items())
        to_find = ahead < 0 or (ahead == 0 and excess.total() <= 0)
        halves[group] = HALVES[0] if to_find else HALVES[1]
        for stratum, n in members[group].items():
            excess[stratum] += n if to_find else -n
    return halves


# --- the record -----------------------------------------------------------------------------------


def _about(
    items: Sequence[Item],
    quotas: Mapping[str, int],
    sources: Sequence[OpenedSource],
    settings: TestsetSettings,
    pool: _Pool,
) -> JsonObject:
    by_stratum = Counter((item.stratum, item.half) for item in items)
    checked = Counter(
        item.stratum if item.verifier is not None else f"{item.stratum}, judged" for item in items
    )
    strata: dict[str, JsonObject] = {}
    for name, asked in quotas.items():
        halves: dict[str, int] = {half: by_stratum[name, half] for half in HALVES}
        made = sum(halves.values())
        strata[name] = {"asked": asked, "items": made, **halves, "with_verifier": checked[name]}
    groups = Counter(item.group for item in items)
    packages = ("forty2", "numpy", "rensa")
    return {
        "items": len(items),
        "seed": settings.seed,
        "strata": strata,
        "sources": [source.about for source in sources],
        "sha256": halves_sha256(items),
        "dropped": {
            "duplicates": dict(sorted(pool.duplicates.items())),
            "near_duplicates": dict(sorted(pool.near_duplicates.items())),
            "in_training_data": list(pool.searched.values()),
        },
        "disjoint_from": list(settings.disjoint_from),
        "groups": {"number": len(groups), "largest": max(groups.values())},
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
