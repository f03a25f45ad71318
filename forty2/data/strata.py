"""Strata of a data set: even samples, proportional shares, and an order from easy to hard."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from forty2.errors import DataError
from forty2.files import JsonObject

LEVELS = {
    "difficulty": ("easy", "medium", "hard"),
    "complexity": ("simple", "moderate", "nuanced"),
    "subtlety": ("explicit", "mixed", "implicit"),
}
"""Keys whose values have an order, the easiest first."""

Row = JsonObject
Cell = tuple[str, ...]
"""One value for each key that rows are stratified by."""
Name = TypeVar("Name", bound=Hashable)
T = TypeVar("T")


class Stratified(NamedTuple):
    """Rows drawn evenly, the easiest first."""

    rows: list[Row]
    drawn: dict[Cell, int]
    """Number of rows drawn from each stratum."""
    empty: list[Cell]
    """Combinations of values that no row has."""


def stratify(
    rows: Sequence[Row], keys: Sequence[str], size: int | None = None, seed: int = 42
) -> Stratified:
    """Draw the same number of rows from every stratum, as far as each has them.

    Each row drawn gets `order`, from 0 (easiest) to 1: the mean place of its values in `LEVELS`.

    Args:
        keys: keys of the rows; a stratum is one combination of their values.
        size: number of rows to draw; default: from every stratum as many as the smallest one has.

    Raises:
        DataError: a row lacks a key, or there are too few rows.
    """
    cells: dict[Cell, list[Row]] = {}
    for number, row in enumerate(rows, 1):
        missing = [key for key in keys if key not in row]
        if missing:
            raise DataError(f"row {number}: has no {missing[0]} to stratify by")
        cells.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    if not cells:
        raise DataError("no rows to stratify")
    if size is None:
        size = min(map(len, cells.values())) * len(cells)
    if size > len(rows):
        raise DataError(f"asked for {size:,} rows, there are {len(rows):,}")
    generator = random.Random(str(seed))
    order = sorted(cells)
    for cell in order:
        generator.shuffle(cells[cell])
    generator.shuffle(order)  # decides which strata give one row more
    drawn = list(itertools.islice(round_robin([cells[cell] for cell in order]), size))
    values = [sorted({cell[i] for cell in cells}) for i in range(len(keys))]
    return Stratified(
        sorted(({**row, "order": hardness(row)} for row in drawn), key=lambda row: row["order"]),
        dict(sorted(Counter(tuple(str(row[key]) for key in keys) for row in drawn).items())),
        [cell for cell in itertools.product(*values) if cell not in cells],
    )


def hardness(row: Row) -> float:
    """Compute how hard a row is, from 0 (easiest) to 1, from its values of the keys in `LEVELS`."""
    places = [
        levels.index(row[key]) / (len(levels) - 1)
        for key, levels in LEVELS.items()
        if row.get(key) in levels
    ]
    return round(sum(places) / len(places), 4) if places else 0.0


def round_robin(groups: Iterable[Iterable[T]]) -> Iterator[T]:
    """Yield the first item of every group, then the second of every group, until all are used up."""
    active = [iter(group) for group in groups]
    while active:
        unfinished = []
        for group in active:
            for item in group:
                yield item
                unfinished.append(group)
                break
        active = unfinished


def largest_remainder(
    sizes: Mapping[Name, int], total: int, ties: Iterable[Name] | None = None
) -> dict[Name, int]:
    """Divide a total among strata in proportion to their sizes, in whole numbers.

    Each stratum gets its exact share rounded down. The strata with the largest remainders get one
    more each, until the total is reached (Hamilton's method). No stratum gets more than its size, as
    long as the total is at most the sum of the sizes.

    Args:
        sizes: size of each stratum, not all 0.
        ties: every stratum once; of equal remainders, the earlier one gets one more. Default: the
            order of `sizes`.

    Returns:
        Each stratum's part, in the order of `sizes`.
    """
    whole = sum(sizes.values())
    shares = {name: divmod(total * size, whole) for name, size in sizes.items()}
    order = sorted(sizes if ties is None else ties, key=lambda name: -shares[name][1])
    rounded_up = set(order[: total - sum(quotient for quotient, _ in shares.values())])
    return {name: quotient + (name in rounded_up) for name, (quotient, _) in shares.items()}
