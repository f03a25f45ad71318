"""Source rows divided into training and validation before anything is composed from them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

VALID_SHARE = 0.1

Row = dict[str, Any]
T = TypeVar("T")


class Split(NamedTuple):
    """Training and validation rows."""

    train: list[Row]
    valid: list[Row]


def split_by(
    source: Sequence[Mapping[str, Any]], seed: int, stratum: Callable[[Mapping[str, Any]], str]
) -> Split:
    """A tenth of each stratum for validation, at least one row of it; the rest for training."""
    groups: dict[str, list[Row]] = {}
    for row in source:
        groups.setdefault(stratum(row), []).append(dict(row))
    train: list[Row] = []
    valid: list[Row] = []
    for name in sorted(groups):
        group = shuffled(groups[name], f"{seed}-{name}")
        cut = math.ceil(VALID_SHARE * len(group)) if len(group) > 1 else 0
        valid += group[:cut]
        train += group[cut:]
    return Split(shuffled(train, seed), valid)


def shuffled(source: Iterable[T], seed: float | str) -> list[T]:
    """The same order for the same seed everywhere."""
    result = list(source)
    random.Random(str(seed)).shuffle(result)
    return result
