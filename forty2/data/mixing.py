"""Mixing sources into one set, and splitting one off for validation.

Weights are shares of what comes out, not of what goes in: 85 and 15 give a set of which 15% is
replay, however large the replayed file is.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forty2.data.formats import parse, to_row
from forty2.data.sources import read_rows
from forty2.data.views import prompt_key
from forty2.errors import DataError

Row = Mapping[str, Any]


class Mixed(NamedTuple):
    """A mixture and what it really is made of."""

    rows: list[Row]
    shares: dict[str, float]
    """Of the output, by rows or tokens as asked for."""
    repeats: dict[str, float]
    """How often each source's rows come on average, where more than once."""


def mix(
    inputs: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    *,
    size: int | None = None,
    measure: Callable[[Row], int] = lambda row: 1,
    repeat: bool = False,
    shuffle: bool = True,
    seed: int = 42,
) -> Mixed:
    """Draw from sources so that each makes up its share of the output.

    Args:
        weights: in any unit; None takes every row of every source.
        size: of the output, in what `measure` counts; default: all that the weights allow.
        measure: 1 for shares by rows, a row's tokens for shares by tokens.
        repeat: a source that is used up starts again, reshuffled.
        shuffle: rows of all sources among each other; else source after source.

    Raises:
        DataError: a source is too small for its share and `repeat` is off.
    """
    names = [str(path) for path in inputs]
    sources = [[to_row(parse(row, at)) for at, row in read_rows(path)] for path in inputs]
    if any(not rows for rows in sources):
        raise DataError(f"{names[[bool(rows) for rows in sources].index(False)]}: holds no rows")
    sizes = [[measure(row) for row in rows] for rows in sources]
    if weights is None:
        if size is not None:
            raise DataError("a size needs weights: without them every row is taken")
        wanted: list[float] = [sum(own) for own in sizes]
    else:
        wanted = _wanted(names, list(weights), [sum(own) for own in sizes], size, repeat)
    drawn: list[list[Row]] = []
    amounts: list[int] = []
    for i, rows in enumerate(sources):
        order = list(_draw(len(rows), sizes[i], wanted[i], random.Random(f"{seed}-{i}")))
        drawn.append([{**rows[n], "source": Path(names[i]).name} for n in order])
        amounts.append(sum(sizes[i][n] for n in order))
    total = sum(amounts)
    mixed = [row for rows in drawn for row in rows]
    if shuffle:
        random.Random(str(seed)).shuffle(mixed)
    return Mixed(
        mixed,
        {name: round(a / total, 4) for name, a in zip(names, amounts, strict=True)},
        {
            name: round(len(d) / len(s), 2)
            for name, d, s in zip(names, drawn, sources, strict=True)
            if len(d) > len(s)
        },
    )


def split(source: str | Path, share: float, *, by: str | None = None, seed: int = 42) -> list[bool]:
    """For each row of a source, whether it is for validation.

    Rows of one prompt stay together (and rows of one `entity`, or of one value of `by`), so that
    validation asks nothing that was trained on.

    Args:
        share: of rows for validation, between 0 and 1; groups are whole, so it is met nearly.

    Raises:
        DataError: there are too few groups to split.
    """
    # Digests, for the prompts of a large file would not fit into memory.
    keys = [_digest(_group(row, at, by)) for at, row in read_rows(source)]
    sizes = Counter(keys)
    order = sorted(sizes, key=lambda key: _digest(f"{seed}-{key}"))
    chosen: set[int] = set()
    rows = 0
    for key in order:
        if rows + sizes[key] / 2 > share * len(keys):
            break
        chosen.add(key)
        rows += sizes[key]
    if share > 0 and (not chosen or len(chosen) == len(sizes)):
        raise DataError(
            f"{source}: {len(sizes)} prompts in {len(keys)} rows cannot be split at {share:g}"
        )
    return [key in chosen for key in keys]


def _wanted(
    names: Sequence[str],
    weights: list[float],
    available: Sequence[int],
    size: int | None,
    repeat: bool,
) -> list[float]:
    """How much to draw from each source."""
    if len(weights) != len(names):
        raise DataError(f"{len(names)} inputs but {len(weights)} weights; give one for each")
    if any(weight <= 0 for weight in weights):
        raise DataError("weights must be above 0; leave out an input that should give nothing")
    shares = [weight / sum(weights) for weight in weights]
    most = min(n / share for n, share in zip(available, shares, strict=True))
    if size is None:
        size = int(max(available[i] / shares[i] for i in range(len(shares))) if repeat else most)
    if size > most + 1e-9 and not repeat:
        i = min(range(len(names)), key=lambda i: available[i] / shares[i])
        raise DataError(
            f"{names[i]}: holds {available[i]:,}, but {shares[i]:.0%} of {size:,} is "
            f"{shares[i] * size:,.0f}; give --size {int(most)} or less, or --repeat"
        )
    return [share * size for share in shares]


def _draw(
    rows: int, sizes: Sequence[int], wanted: float, generator: random.Random
) -> Iterator[int]:
    """Row indices in random order until their sizes come nearest to what is wanted."""
    drawn = 0
    while True:
        order = list(range(rows))
        generator.shuffle(order)
        for n in order:
            if drawn + sizes[n] / 2 > wanted:
                return
            drawn += sizes[n]
            yield n
        if not sum(sizes):
            return


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def _group(row: Row, origin: str, by: str | None) -> str:
    if by is not None:
        if by not in row:
            raise DataError(f"{origin}: has no {by} to split by")
        return str(row[by])
    entity = row.get("entity")
    return f"entity {entity.casefold()}" if isinstance(entity, str) else prompt_key(row, origin)
