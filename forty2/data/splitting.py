"""Division of rows into training and validation, so that no validation prompt is trained on."""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from forty2.data.formats import parse
from forty2.data.record_texts import prompt_key
from forty2.data.sources import read_rows
from forty2.errors import DataError
from forty2.files import JsonObject

VALID_SHARE = 0.1
"""Share of each stratum's rows that goes to validation."""

Row = JsonObject
T = TypeVar("T")


class Split(NamedTuple):
    """Training and validation rows."""

    train: list[Row]
    valid: list[Row]


def split(source: str | Path, share: float, *, by: str | None = None, seed: int = 42) -> list[bool]:
    """Choose which rows of a source are for validation.

    Rows of one group stay together.

    Args:
        share: share of the rows for validation, between 0 and 1. Groups stay whole, so the result is
            approximate.
        by: key whose values form the groups; None: `entity` in rows that have it, else the prompt.

    Returns:
        For each row in the order of the source, whether it is for validation.

    Raises:
        DataError: there are too few groups to split, or a row lacks the key.
    """
    # Digests, because the prompts of a large file would not fit into memory.
    keys = [_digest(_group(row, origin, by)) for origin, row in read_rows(source)]
    sizes = Counter(keys)
    chosen: set[int] = set()
    rows = 0
    for key in sorted(sizes, key=lambda key: _digest(f"{seed}-{key}")):
        if rows + sizes[key] / 2 > share * len(keys):
            break
        chosen.add(key)
        rows += sizes[key]
    if share > 0 and (not chosen or len(chosen) == len(sizes)):
        raise DataError(
            f"{source}: {len(sizes)} prompts in {len(keys)} rows cannot be split at {share:g}"
        )
    return [key in chosen for key in keys]


def split_by_stratum(
    source: Iterable[Mapping[str, object]], seed: int, stratum: Callable[[Row], str]
) -> Split:
    """Take a tenth of each stratum for validation, at least one row, and the rest for training.

    The only row of a stratum goes to training. Training rows are shuffled over all strata.
    """
    groups: dict[str, list[Row]] = {}
    for row in map(dict, source):
        groups.setdefault(stratum(row), []).append(row)
    train: list[Row] = []
    valid: list[Row] = []
    for name in sorted(groups):
        group = seeded_order(groups[name], f"{seed}-{name}")
        cut = math.ceil(VALID_SHARE * len(group)) if len(group) > 1 else 0
        valid += group[:cut]
        train += group[cut:]
    return Split(seeded_order(train, seed), valid)


def seeded_order(source: Iterable[T], seed: float | str) -> list[T]:
    """Return a shuffled copy: the same order for the same seed on every machine."""
    result = list(source)
    random.Random(str(seed)).shuffle(result)
    return result


def _group(row: Row, origin: str, by: str | None) -> str:
    if by is not None:
        if by not in row:
            raise DataError(f"{origin}: has no {by} to split by")
        return str(row[by])
    entity = row.get("entity")
    if isinstance(entity, str):
        return f"entity {entity.casefold()}"
    return prompt_key(parse(row, origin))


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
