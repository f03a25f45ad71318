"""Held-out rows: enough to judge a model by, and none with a near copy in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from forty2.data.checks.near_duplicates import NearDuplicates
from forty2.data.joining import Joining
from forty2.data.record_texts import answer_of, prompt_key, prompt_turns, rejected_of, words_of
from forty2.data.records import Record
from forty2.data.splitting import seeded_order
from forty2.errors import DataError

SHARE = 0.2
FEWEST, MOST = 20, 200
LARGEST_SHARE = 3
"""Held out are a fifth of the rows, at least 20 and at most 200, but never more than a third."""


def rows_to_hold_out(rows: int) -> int:
    """Count the rows to hold out of a number of rows."""
    return min(max(FEWEST, round(SHARE * rows)), MOST, rows // LARGEST_SHARE)


def smallest_visible_change(rows: int) -> float:
    """Return the half width of the 95% interval of a share of one half, between 0 and 1."""
    return float(0.98 / rows**0.5)


def hold_out(kinds: Mapping[str, Sequence[Record]], seed: int = 42) -> dict[str, list[bool]]:
    """Choose the rows to hold out of several kinds of rows together.

    Rows with the same or nearly the same prompt, or about the same `entity`, stay on one side, also
    across kinds: a question held out of the chats is in no training pair.

    Returns:
        For each kind, and each of its rows in order, whether it is held out.

    Raises:
        DataError: there are too few rows of a kind, or they are all near copies of each other.
    """
    names = [name for name, records in kinds.items() for _ in records]
    groups = _groups(list(chain.from_iterable(kinds.values())))
    wanted = {name: rows_to_hold_out(len(records)) for name, records in kinds.items()}
    taken = dict.fromkeys(kinds, 0)
    chosen: set[int] = set()
    for group in seeded_order(groups, seed):
        sizes = {name: sum(names[row] == name for row in group) for name in kinds}
        fits = all(taken[name] + size <= wanted[name] for name, size in sizes.items())
        if fits:
            chosen.update(group)
            taken = {name: taken[name] + size for name, size in sizes.items()}
    for name, records in kinds.items():
        if not taken[name]:
            raise DataError(
                f"{name}: none of {len(records):,} rows can be held out to judge the model by, "
                + (
                    "because they are too few; give more"
                    if not wanted[name]
                    else "because nearly all ask the same; give rows with other questions"
                )
            )
    places = iter(range(len(names)))
    return {name: [next(places) in chosen for _ in records] for name, records in kinds.items()}


def _groups(records: Sequence[Record]) -> list[list[int]]:
    """Join rows that must stay together; return the indices of each group, ascending."""
    joining = Joining(len(records))
    same: dict[str, int] = {}
    prompts, wholes = NearDuplicates(), NearDuplicates()
    for row, record in enumerate(records):
        turns = prompt_turns(record)
        prompt = " ".join(turns) or answer_of(record)
        prompts.add(prompt)
        # as the lint compares them
        wholes.add(" ".join([*turns, answer_of(record), rejected_of(record)]))
        keys = [" ".join(words_of(prompt)) or prompt_key(record)]
        entity = record.meta.get("entity")
        keys += [f"entity\n{entity.casefold()}"] if isinstance(entity, str) else []
        for key in keys:
            joining.join(row, same.setdefault(key, row))
    for near in (prompts, wholes):
        for group in near.groups():
            for row in group[1:]:
                joining.join(int(row), int(group[0]))
    return joining.groups()
