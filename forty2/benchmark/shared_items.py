"""What two stages of runs both measured: their common tasks, and of these the common items. NumPy only.

Two runs seldom measure the same: one has fewer questions, or other held-out rows. Items are the same if
what their task records of them is (`Task.match_key`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from forty2.benchmark.results import Item, Result, Stage
from forty2.benchmark.tasks import task_class
from forty2.benchmark.verdict import HELD_OUT
from forty2.errors import BenchmarkError
from forty2.files import JsonObject

_FEWEST = 2
"""Fewest common items of a task that can be compared: one has no interval."""


class Shared(NamedTuple):
    """Two stages cut down to what both measured."""

    before: Stage
    after: Stage
    left_out: tuple[str, ...]
    """What only one of them measured, a sentence for each task."""


def shared_items(before: Stage, after: Stage) -> Shared:
    """Leave out what only one of two stages measured.

    A task whose data differ stays as it is where its items cannot be matched, or where all of them look
    the same: `check_same` then refuses it.

    Raises:
        BenchmarkError: they have no task, or no items, in common.
    """
    left_out: list[str] = []
    cut = Stage(before.name, {}), Stage(after.name, {})
    for name in dict.fromkeys([*before.results, *after.results]):
        old, new = before.results.get(name), after.results.get(name)
        if not (_is_compared(old) or _is_compared(new)):
            continue
        if old is None or new is None:
            left_out.append(f"{task_class(name).label()}: measured in one of them only.")
            continue
        both = _matched(old, new) or (old, new)
        n = len(both[0].items)
        if both[0] is not old and n < max(len(old.items), len(new.items)):
            left_out.append(_sentence(old, new, n))
        if both[0] is old or n >= _FEWEST:
            cut[0].results[name], cut[1].results[name] = both
    if not cut[0].results:
        raise BenchmarkError(f"not comparable: {' '.join(left_out)}".removesuffix("."))
    return Shared(*cut, tuple(left_out))


def _is_compared(result: Result | None) -> bool:
    """Return whether a result has a metric of which a change is better or worse."""
    if result is None:
        return False
    task = task_class(result.benchmark)
    names = {name for item in result.items for name in item.scores}
    return any(task.metric(name).better != "neither" for name in names)


def _sentence(old: Result, new: Result, n: int) -> str:
    """Say how many items of a task are in both, and how to have all of them in both."""
    mend = "hold out the same rows"
    if old.benchmark != HELD_OUT:
        mend = "give both recipes the same `benchmark.n` and `seed`"
    named = old.data if task_class(old.benchmark).title else old.label
    return (
        f"{named}: {n} in both, of {len(old.items)} before and {len(new.items)} after; to "
        f"compare all, {mend}."
    )


def _matched(old: Result, new: Result) -> tuple[Result, Result] | None:
    """Return two results of one task with the items that both have; None: they stay as they are."""
    task = task_class(old.benchmark)
    same_data = old.data_sha256 == new.data_sha256
    names = [[str(task.identify(item.record)) for item in one.items] for one in (old, new)]
    if same_data and names[0] == names[1]:
        return None
    keys: list[list[str]] = names
    if not same_data:
        found = [[task.match_key(item.record) for item in one.items] for one in (old, new)]
        keys = [[key for key in of_one if key is not None] for of_one in found]
        if keys[0] + keys[1] != found[0] + found[1]:
            return None
        if sorted(keys[0]) == sorted(keys[1]) and old.benchmark != HELD_OUT:
            return None  # they look the same, but something that is not recorded differs
    items = [_by_key(of_one, one.items) for of_one, one in zip(keys, (old, new), strict=True)]
    pairs = [(item, items[1][key]) for key, item in items[0].items() if key in items[1]]
    after = [
        {**item.record, **{key: first.record[key] for key in task.place_keys & first.record.keys()}}
        for first, item in pairs
    ]
    return _cut(old, [first.record for first, _ in pairs]), _cut(new, after)


def _by_key(keys: Sequence[str], items: Sequence[Item]) -> dict[tuple[str, int], Item]:
    """Return items by key, and by the number of items before it with the same."""
    counts = Counter[str]()
    found = {}
    for key, item in zip(keys, items, strict=True):
        found[key, counts[key]] = item
        counts[key] += 1
    return found


def _cut(result: Result, records: Sequence[JsonObject]) -> Result:
    """Return a result of some of its items; its data's hash is of more, so it goes."""
    items = task_class(result.benchmark).items(records)
    figures = {"n": len(items)}
    return dataclasses.replace(result, items=items, figures=figures, data_sha256=None)
