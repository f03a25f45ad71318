"""Mixtures of several sources.

Weights are shares of the mixture, not of each source: with weights of 85 and 15, 15% of the mixture
comes from the second file, however large that file is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from forty2.data.formats import parse, to_row
from forty2.data.records import Chat, Pair, Rated, Record, Text
from forty2.data.sources import no_rows, read_rows
from forty2.errors import DataError
from forty2.files import JsonObject

Row = JsonObject


_NAMES: dict[type[Record], str] = {
    Chat: "conversations",
    Text: "texts",
    Pair: "preference pairs",
    Rated: "rated responses",
}
_TAKEN: tuple[set[type[Record]], ...] = ({Chat, Text}, {Pair, Rated})
"""Kinds of rows that some phase takes together."""


class Mixed(NamedTuple):
    """A mixture and its actual shares."""

    rows: list[Row]
    shares: dict[str, float]
    """Each source's share of the mixture, between 0 and 1, in the unit that `measure` counts."""
    repeats: dict[str, float]
    """Average number of times that a source's rows are used; only sources used more than once."""


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
    """Draw from sources so that each makes up its share of the mixture.

    Args:
        inputs: files, folders or hub data sets, as `read_rows` takes them.
        weights: share of each source, in any unit; None takes every row of every source.
        size: size of the mixture, in the unit that `measure` counts; default: all that the weights
            allow.
        measure: returns 1 for shares by rows, or a row's tokens for shares by tokens.
        repeat: use a source that is used up again, in another order.
        shuffle: mix the rows of all sources; otherwise they come source after source.

    Raises:
        DataError: a source is too small for its share and `repeat` is off.
    """
    names = [str(path) for path in inputs]
    records = [[parse(row, at) for at, row in read_rows(path)] for path in inputs]
    _check_kinds(names, records)
    sources = [list(map(to_row, own)) for own in records]
    if any(not rows for rows in sources):
        raise no_rows(names[[bool(rows) for rows in sources].index(False)])
    sizes = [[measure(row) for row in rows] for rows in sources]
    orders = draw(names, sizes, weights, size=size, repeat=repeat, seed=seed)
    drawn = [
        [{**rows[n], "source": Path(name).name} for n in order]
        for name, rows, order in zip(names, sources, orders, strict=True)
    ]
    amounts = [sum(own[n] for n in order) for own, order in zip(sizes, orders, strict=True)]
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


def draw(
    names: Sequence[str],
    sizes: Sequence[Sequence[float]],
    weights: Sequence[float] | None,
    *,
    size: float | None = None,
    repeat: bool = False,
    seed: int = 42,
) -> list[list[int]]:
    """Draw the rows of each source that make up its share of a mixture.

    Args:
        names: of the sources, for messages.
        sizes: of each source's rows, in the unit of the shares.
        Others: as for `mix`.

    Returns:
        Row numbers by source, in random order; a row that is used again comes again.

    Raises:
        DataError: as `mix`.
    """
    available = [sum(own) for own in sizes]
    if weights is not None:
        wanted = _wanted(names, list(weights), available, size, repeat)
    elif size is not None:
        raise DataError("a size needs weights: without them every row is taken")
    else:
        wanted = available
    return [
        list(_draw(len(own), own, wanted[i], random.Random(f"{seed}-{i}")))
        for i, own in enumerate(sizes)
    ]


def _check_kinds(names: Sequence[str], records: Sequence[Sequence[Record]]) -> None:
    """Refuse a mixture of kinds that no phase takes together."""
    found = {type(record): name for name, own in zip(names, records, strict=True) for record in own}
    if any(found.keys() <= kinds for kinds in _TAKEN):
        return
    listed = " with ".join(f"{_NAMES[kind]} ({name})" for kind, name in found.items())
    raise DataError(
        f"{listed}: no phase takes these together; mix each kind into a file of its own"
    )


def _wanted(
    names: Sequence[str],
    weights: Sequence[float],
    available: Sequence[float],
    size: float | None,
    repeat: bool,
) -> list[float]:
    """Compute how much to draw from each source, in the unit that `measure` counts."""
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
            f"{shares[i] * size:,.0f}; give `size` {int(most)} or less, or `repeat=True`"
        )
    return [share * size for share in shares]


def _draw(
    rows: int, sizes: Sequence[float], wanted: float, generator: random.Random
) -> Iterator[int]:
    """Yield row indices in random order until the sum of their sizes is nearest to `wanted`."""
    drawn = 0.0
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
