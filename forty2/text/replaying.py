"""Replay: rows of earlier training data among a phase's own rows, as shares of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from forty2.data.mixing import draw
from forty2.errors import DataError
from forty2.files import JsonObject
from forty2.text.rows import AnyRow, FittedRows, row_length

Unit = Literal["rows", "tokens"]


class ReplaySource(NamedTuple):
    """Rows to draw from."""

    name: str
    """The phase whose training rows they are, or their file, as the recipe names it."""
    source: str
    """Rows, as `read_rows` takes them."""
    share: float
    """Share of all rows of the phase."""
    is_left_out: Callable[[JsonObject], bool] = lambda row: False
    """Function that tells the rows that the earlier phase held out."""


class Replay(NamedTuple):
    """What a phase replays."""

    sources: tuple[ReplaySource, ...] = ()
    by: Unit = "rows"
    """Unit of the shares."""
    seed: int = 42


class Replayed(NamedTuple):
    """The rows drawn from one source. They come one after another, after the phase's own rows."""

    name: str
    rows: int
    """Different rows."""
    available: int
    """Rows of the source that fit."""
    uses: float
    """Average uses of each row in a pass; above 1 where the source is too small for its share."""
    wanted: float
    """Share that the recipe asks for."""
    of_rows: float
    """Share of the rows of a pass."""
    of_tokens: float
    """Share of the tokens of a pass."""

    def __str__(self) -> str:
        again = f", each {self.uses:.1f} times a pass" if self.uses > 1 else ""
        return (
            f"replays {self.rows:,} of the {self.available:,} rows of {self.name}{again}: "
            f"{self.of_rows:.1%} of the rows and {self.of_tokens:.1%} of the tokens"
        )


def add_replayed(
    own: FittedRows, others: Sequence[FittedRows], replay: Replay
) -> tuple[FittedRows, tuple[Replayed, ...]]:
    """Add to a phase's rows those that make up the shares of other rows; all its own rows stay.

    A row that is drawn several times is there once, with so much more weight.

    Args:
        others: rows of each source of `replay`.

    Raises:
        DataError: no row of a source fits, or its share is less than a row.
    """
    for source, fitted in zip(replay.sources, others, strict=True):
        if not fitted.rows:
            raise DataError(f"{source.source}: no row to replay fits into max_length")
    parts: list[Sequence[AnyRow]] = [own.rows, *(fitted.rows for fitted in others)]
    tokens = [[row.weight * row_length(row) for row in rows] for rows in parts]
    sizes = tokens if replay.by == "tokens" else [[row.weight for row in rows] for rows in parts]
    shares = [source.share for source in replay.sources]
    drawn = draw(
        ["its own rows", *(source.name for source in replay.sources)],
        sizes,
        [1 - sum(shares), *shares],
        size=sum(sizes[0]) / (1 - sum(shares)),
        repeat=True,
        seed=replay.seed,
    )
    counts = [Counter(order) for order in drawn[1:]]
    for source, count in zip(replay.sources, counts, strict=True):
        if not count:
            raise DataError(
                f"{source.source}: {source.share:g} of so few rows is none to replay; raise its share, "
                "or leave it out"
            )
    added = [
        [rows[n]._replace(weight=rows[n].weight * times) for n, times in sorted(count.items())]
        for rows, count in zip(parts[1:], counts, strict=True)
    ]
    all_parts: list[Sequence[AnyRow]] = [own.rows, *added]
    weights = [sum(row.weight for row in rows) for rows in all_parts]
    lengths = [sum(row.weight * row_length(row) for row in rows) for rows in all_parts]
    replayed = tuple(
        Replayed(
            name=source.name,
            rows=len(count),
            available=len(fitted.rows),
            uses=count.total() / len(count),
            wanted=source.share,
            of_rows=weight / sum(weights),
            of_tokens=length / sum(lengths),
        )
        for source, fitted, count, weight, length in zip(
            replay.sources, others, counts, weights[1:], lengths[1:], strict=True
        )
    )
    together = FittedRows(
        [row for rows in all_parts for row in rows],
        [origin for fitted in (own, *others) for origin in fitted.shortened],
        [origin for fitted in (own, *others) for origin in fitted.dropped],
    )
    return together, replayed
