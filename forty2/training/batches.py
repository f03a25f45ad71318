"""Batches of rows: seeded order, similar lengths together, few shapes.

The batch of a step is a pure function of (seed, step), so a run that stops can go on at any step
without going through what came before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.inference.padding import PairBatch, pad, padded_width
from forty2.text.rows import AnyPair, RatedRow, Row, row_length

BOTH = CHOSEN, REJECTED = 0, 1
"""Sides of a pair."""
POOL = 64
"""Batches formed together from rows of similar length; a larger pool pads less and shuffles less."""


class SftBatch(NamedTuple):
    """Conversations, padded on the right. B rows, T tokens."""

    ids: npt.NDArray[np.int32]
    """(B, T)"""
    mask: npt.NDArray[np.bool_]
    """(B, T), true where supervised."""
    segments: npt.NDArray[np.int32] | None
    """(B, T), number of the packed row that a token belongs to; None: no row is packed."""
    weight: float
    """Supervised tokens, or the sum of their weights; the summed loss is divided by it."""
    tokens: int
    """Tokens without padding."""
    rows: npt.NDArray[np.int64]
    """(B,) index of each row in the data."""
    origins: tuple[str, ...]


Batch = SftBatch | PairBatch


class Extent(NamedTuple):
    """The length of a phase in batches."""

    batches: int
    last_rows: int | None = None
    """Rows of the last batch, where it is cut; None: all."""


class Order:
    """The rows of each batch of each epoch.

    Rows are shuffled, cut into batches of similar length within pools of batches, and the batches
    shuffled. An epoch uses every row once, or as often as its weight says: a weight of 2.5 means
    twice or three times, evenly over the epochs. One of its batches may be short, so that no batch
    mixes two epochs.

    Args:
        lengths: (rows,) tokens of each row.
        batch_size: rows in a batch.
        weights: (rows,) average uses of each row per epoch; None: one.
        tokens: approximate tokens in a batch, in place of `batch_size`.
        pool: batches formed together. 1: each batch is drawn at random.
        passes: indices of the rows that each epoch uses, none without rows; all further epochs use
            the last ones. None: all rows.
        places: (rows,) place of each row, by which every epoch is sorted; None: it is shuffled.
        strata: (rows, keys) number of each row's value of each key, over which batches are even.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        tokens: int | None = None,
        pool: int = POOL,
        *,
        passes: Sequence[npt.NDArray[np.int64]] | None = None,
        places: npt.NDArray[np.int64] | None = None,
        strata: npt.NDArray[np.int64] | None = None,
    ) -> None:
        if not len(lengths):
            raise ValueError("no rows")
        self._lengths = np.asarray(lengths)
        self._weights = np.ones(len(lengths)) if weights is None else np.asarray(weights, float)
        self.passes = passes or [np.arange(len(lengths))]
        """Indices of the rows that each epoch uses; all further epochs use the last ones."""
        self.rows = len(self.passes[-1])
        """Rows that an epoch of all rows uses: those of the file, but for those left out."""
        self.tokens = int(self._lengths[self.passes[-1]].sum())
        """Tokens of these rows."""
        self._counts = [rows_of_epoch(self._weights[rows]) for rows in self.passes]
        self._places, self._strata = places, strata
        self._size = batch_size
        self._tokens = tokens
        self._seed = seed
        self._pool = pool
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        self._ends: npt.NDArray[np.int64] = np.zeros(1, np.int64)  # rows before each batch of it
        lengths_in_batches = [
            count / self._batch_rows(rows)
            for count, rows in zip(self._counts, self.passes, strict=True)
        ]
        self.epoch_length = lengths_in_batches[-1]
        """Batches in an epoch, the one that is not full counted by how full it is."""
        self._batch_counts = [math.ceil(length) for length in lengths_in_batches]
        self._starts = np.cumsum([0, *self._batch_counts])  # first batch of each pass

    @property
    def rows_per_epoch(self) -> int:
        """Rows that an epoch of all rows draws, repeats included."""
        return self._counts[-1]

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch of all rows, the one that is not full counted whole."""
        return self._batch_counts[-1]

    def batch(self, index: int) -> list[int]:
        """Return the row indices of a batch, numbered from 0 at the beginning of training."""
        epoch, position = self._locate(index)
        return self._batches(epoch)[position]

    def pass_of(self, index: int) -> int:
        """Return the number of the entry of `passes` that a batch belongs to, from 0."""
        return min(self._locate(index)[0], len(self.passes) - 1)

    def first_batch(self, epoch: int) -> int:
        """Count the batches before an epoch, which is numbered from 0."""
        last = len(self.passes) - 1
        if epoch <= last:
            return int(self._starts[epoch])
        return int(self._starts[last]) + (epoch - last) * self.batches_per_epoch

    def rows_drawn(self, batches: int) -> int:
        """Count the rows that the first batches draw, repeats included."""
        epochs, rest = self._locate(batches)
        last = len(self.passes) - 1
        drawn = sum(self._counts[:epochs]) + max(0, epochs - last - 1) * self.rows_per_epoch
        if rest:
            self._batches(epochs)
            drawn += int(self._ends[rest])
        return drawn

    def batches_of(self, epochs: float) -> Extent:
        """Count the batches of this many epochs; the rows of a part of an epoch are rounded."""
        whole = int(epochs)
        rows = self._counts[min(whole, len(self.passes) - 1)]
        part = round((epochs - whole) * rows)
        if not whole:
            part = max(1, part)
        if part in (0, rows):
            return Extent(self.first_batch(whole + (part > 0)))
        self._batches(whole)
        rest = int(np.searchsorted(self._ends, part))
        last = part - int(self._ends[rest - 1])
        full = last == self._ends[rest] - self._ends[rest - 1]
        return Extent(self.first_batch(whole) + rest, None if full else last)

    def rows_seen(self, batches: int) -> list[int]:
        """Return the indices of the rows that the first batches may hold, each once, in file order."""
        epochs, rest = self._locate(batches)
        seen: set[int] = set()
        if epochs:
            seen.update(self.passes[min(epochs, len(self.passes)) - 1].tolist())
        if len(seen) < self.rows:
            for index in range(batches - rest, batches):
                seen.update(self.batch(index))
        return sorted(seen)

    def _batch_rows(self, rows: npt.NDArray[np.int64]) -> float:
        """Return the rows in a batch of an epoch of these rows; with `tokens`, the average."""
        if self._tokens is None:
            return self._size
        mean = np.average(self._lengths[rows], weights=self._weights[rows])
        return float(max(1, self._tokens / mean))

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the epoch of a batch and its position there, both from 0."""
        last = len(self.passes) - 1
        beyond = index - int(self._starts[last])
        if beyond >= 0:
            epoch, position = divmod(beyond, self.batches_per_epoch)
            return last + epoch, position
        epoch = int(np.searchsorted(self._starts, index, "right")) - 1
        return epoch, index - int(self._starts[epoch])

    def _batches(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch, which are formed when it begins."""
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._form(epoch))
            self._ends = np.cumsum([0, *map(len, self._epoch[1])])
        return self._epoch[1]

    def _sample(self, random: np.random.Generator, which: int) -> npt.NDArray[np.int64]:
        """Draw row indices in random order, each as often as its weight: systematic sampling.

        Args:
            which: entry of `passes` whose rows are drawn.
        """
        rows, count = self.passes[which], self._counts[which]
        order = rows[random.permutation(len(rows))]
        weights = self._weights[rows]
        if (weights == 1).all():
            return order
        upto = np.cumsum(self._weights[order]) * count / weights.sum()
        upto[-1] = count
        counts = np.diff(np.floor(upto + random.random()), prepend=0.0).astype(int)
        return random.permutation(np.repeat(order, counts))

    def _form(self, epoch: int) -> list[list[int]]:
        """Form the batches of an epoch, as lists of row indices."""
        random = np.random.default_rng([self._seed, epoch])
        which = min(epoch, len(self.passes) - 1)
        order, in_all = self._sample(random, which), self._batch_counts[which]
        if self._places is not None:
            order = order[np.argsort(self._places[order], kind="stable")]
        if self._strata is not None:
            size = self._size if self._tokens is None else -(-len(order) // in_all)
            order = order[spread_over_strata(self._strata[order], size, random)]
        batches: list[list[int]] = []
        if self._tokens is None:
            pool = self._size * self._pool
            for start in range(0, len(order), pool):
                rows = self._sort_by_length(order[start : start + pool]).tolist()
                batches += [rows[n : n + self._size] for n in range(0, len(rows), self._size)]
        else:
            pools = -(-in_all // self._pool)
            counts = np.diff(np.arange(pools + 1) * in_all // pools)
            # Each pool holds at least a row for each of its batches.
            for rows, count in zip(self._cut(order, counts, counts), counts, strict=True):
                rows, one = self._sort_by_length(rows), np.ones(int(count), np.int64)
                batches += [b.tolist() for b in self._cut(rows, one, one)]
        if self._places is not None:
            return batches
        return [batches[i] for i in random.permutation(len(batches))]

    def _cut(
        self,
        rows: npt.NDArray[np.int64],
        shares: npt.NDArray[np.int64],
        least: npt.NDArray[np.int64],
    ) -> list[npt.NDArray[np.int64]]:
        """Cut rows, in order, into pieces with these shares of the tokens, if they have rows enough.

        Args:
            least: fewest rows of each piece; no more in all than there are.
        """
        upto = np.cumsum(self._lengths[rows])
        wanted = np.cumsum(shares) / np.sum(shares) * upto[-1]
        cuts = np.searchsorted(upto, wanted[:-1] - 1e-6 * upto[-1]) + 1
        first = np.cumsum(least)[:-1]
        latest = len(rows) - (least.sum() - first)
        cuts = np.minimum(np.maximum.accumulate(np.maximum(cuts - first, 0)) + first, latest)
        return np.split(rows, cuts)

    def _sort_by_length(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Sort row indices by the rows' length."""
        return rows[np.argsort(self._lengths[rows], kind="stable")]


def rows_of_epoch(weights: Sequence[float] | npt.NDArray[np.float64]) -> int:
    """Count the rows of an epoch, repeats included."""
    return max(1, round(float(np.sum(weights))))


def spread_over_strata(
    strata: npt.NDArray[np.int64], size: int, random: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Order rows so that each run of `size` of them is as even over the strata as possible.

    A batch takes its rows one after the other, each from the combination of values that lags furthest
    behind its share: the sum, over the keys and the combination itself, of the rows due in this batch
    less those taken. With one key every batch has, of each value, its share of the rows that are
    left, rounded down or up. Over several keys at once that is not always possible.

    Args:
        strata: (rows, keys) number of each row's value of each key, the rows in random order.
        size: rows in a batch; the last batch may have fewer.

    Returns:
        (rows,) positions in `strata`, each once.
    """
    cells, cell_of = np.unique(strata, axis=0, return_inverse=True)
    cell_of = cell_of.reshape(-1)
    levels = [np.unique(column, return_inverse=True)[1] for column in cells.T]
    left = np.bincount(cell_of, minlength=len(cells))
    queues = np.split(np.argsort(cell_of, kind="stable"), np.cumsum(left)[:-1])
    taken = np.zeros(len(cells), np.int64)
    order: list[int] = []
    while len(order) < len(strata):
        here = min(size, len(strata) - len(order))
        of_levels = sum(np.bincount(level, weights=left)[level] for level in levels)
        due = (of_levels + left) * here / left.sum() + 1e-6 * random.random(len(cells))
        for _ in range(here):
            cell = int(np.argmax(np.where(left > 0, due, -np.inf)))
            order.append(int(queues[cell][taken[cell]]))
            taken[cell] += 1
            left[cell] -= 1
            due -= sum((level == level[cell]).astype(float) for level in levels)
            due[cell] -= 1
    return np.array(order, np.int64)


def sft_batch(rows: Sequence[Row], indices: Sequence[int]) -> SftBatch:
    """Pad conversations into one batch."""
    # One more than a multiple: the model sees all tokens but the last.
    width = padded_width(max(len(row.ids) for row in rows) - 1) + 1
    ids = pad([row.ids for row in rows], width)
    mask = pad([row.mask for row in rows], width).astype(np.bool_)
    origins = tuple(row.origin for row in rows)
    tokens = sum(len(row.ids) for row in rows)
    segments = None
    if any(row.segments for row in rows):
        segments = pad([row.segments or [0] * len(row.ids) for row in rows], width)
    weight = int(mask[:, 1:].sum())
    return SftBatch(ids, mask, segments, weight, tokens, np.asarray(indices, np.int64), origins)


def pair_batch(
    rows: Sequence[AnyPair], indices: Sequence[int], sides: Sequence[int] = BOTH
) -> PairBatch:
    """Pad pairs, or one side of them, into one batch."""
    prefixes = [row.prompt[:-1] for row in rows]
    lasts = [row.prompt[-1] for row in rows] * len(sides)
    responses = [row.responses[side] for side in sides for row in rows]
    masks = [row.response_masks[side] for side in sides for row in rows]
    width = padded_width(max(map(len, responses)))
    return PairBatch(
        prefixes=pad(prefixes, padded_width(max(map(len, prefixes)))),
        prefix_lengths=np.array([len(prefix) for prefix in prefixes], np.int32),
        inputs=pad([[last, *ids[:-1]] for last, ids in zip(lasts, responses, strict=True)], width),
        targets=pad(responses, width),
        mask=pad(masks, width).astype(np.bool_),
        rows=np.asarray(indices, np.int64),
        weight=len(rows),
        tokens=sum(map(len, prefixes)) + sum(map(len, responses)),
        origins=tuple(row.origin for row in rows),
    )


def lengths_of(rows: Sequence[Row] | Sequence[AnyPair]) -> list[int]:
    """Return the tokens of each row; prepared rows have them stored."""
    return getattr(rows, "lengths", None) or [row_length(row) for row in rows]


def weights_of(rows: Sequence[Row] | Sequence[AnyPair]) -> list[float]:
    """Return the average uses of each row per epoch."""
    return getattr(rows, "weights", None) or [row.weight for row in rows]


def parts_of(
    rows: Sequence[Row] | Sequence[AnyPair], *, both_responses: bool = False
) -> npt.NDArray[np.int64]:
    """Return the lengths of each row's parts, as a batch pads them.

    Args:
        both_responses: count both responses of a rated row, of which a training batch has one.

    Returns:
        (rows, 1) tokens of conversations; (rows, 2) tokens of prompts, and of responses together.
    """
    if len(rows) and isinstance(rows[0], AnyPair):
        pairs: Any = rows
        sides = 1 if isinstance(rows[0], RatedRow) and not both_responses else 2
        return np.array([(len(r.prompt), sides * max(map(len, r.responses))) for r in pairs])
    return np.array(lengths_of(rows))[:, None]
