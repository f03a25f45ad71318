"""Rows to batches: seeded order, length buckets, fixed shapes.

The batch of a step is a pure function of (seed, step), so a run that stops can go on at any step
without replaying what came before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.machine import on_gpu
from forty2.text.rows import AnyPair, PairRow, RatedRow, Row

BUCKET = 8
"""Where steps are compiled, sequences are padded to a multiple of this: few shapes."""
TOGETHER_GPU, TOGETHER_CPU = 4096, 512
"""Tokens computed at once: enough to keep matrix products busy. More takes more memory, and on the
CPU more time, as what is passed on leaves the caches."""
BOTH = CHOSEN, REJECTED = 0, 1
"""Sides of a pair."""
POOL = 64
"""Batches formed together from rows of like length; larger pads less and shuffles less."""


class SftBatch(NamedTuple):
    """Conversations, padded on the right. B rows, T tokens."""

    ids: npt.NDArray[np.int32]
    """(B, T)"""
    mask: npt.NDArray[np.bool_]
    """(B, T), true where supervised."""
    segments: npt.NDArray[np.int32] | None
    """(B, T), which of the rows packed together a token belongs to; None where none are."""
    weight: int
    """Supervised tokens: what the summed loss is divided by."""
    tokens: int
    """Without padding."""
    rows: npt.NDArray[np.int64]
    """(B,) index of each row in the data."""
    origins: tuple[str, ...]


class PairBatch(NamedTuple):
    """B prompts, each once, then k responses to each: of pairs all chosen, then all rejected.

    A response is predicted from the prompt's last token on, so that token opens its inputs:
    prompt [a b c], response [x y]: prefix [a b], inputs [c x], targets [x y].
    """

    prefixes: npt.NDArray[np.int32]
    """(B, P) prompts without their last token, padded on the right."""
    prefix_lengths: npt.NDArray[np.int32]
    """(B,)"""
    inputs: npt.NDArray[np.int32]
    """(kB, T) last prompt token and response without its last, padded on the right."""
    targets: npt.NDArray[np.int32]
    """(kB, T) the response: every token is supervised."""
    mask: npt.NDArray[np.bool_]
    """(kB, T), false on padding."""
    rows: npt.NDArray[np.int64]
    """(B,) index of each row in the data, to look up its reference log-probabilities."""
    weight: int
    """Rows."""
    tokens: int
    """Without padding, each prompt once."""
    origins: tuple[str, ...]


Batch = SftBatch | PairBatch


class Order:
    """Which rows make up the batches of each epoch.

    Rows are shuffled, cut into batches of like length within pools of batches, and the batches
    shuffled. Every row comes once an epoch, or as often as its weight says: 2.5 is twice or
    three times, evenly over the epochs.

    Args:
        lengths: (rows,) tokens of each.
        batch_size: rows in a batch.
        tokens: in place of `batch_size`, about so many tokens in a batch, whatever its rows.
        pool: batches formed together. 1: each is drawn at random.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        weights: Sequence[float] | None = None,
        tokens: int | None = None,
        pool: int = POOL,
    ) -> None:
        if not len(lengths):
            raise ValueError("no rows")
        self._lengths = np.asarray(lengths)
        self._weights = np.ones(len(lengths)) if weights is None else np.asarray(weights, float)
        self._rows = rows_of_epoch(self._weights)
        self._size = batch_size
        self._tokens = tokens
        self._seed = seed
        self._pool = pool
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        mean = np.average(self._lengths, weights=self._weights)
        self.epoch_length = self._rows / (batch_size if tokens is None else max(1, tokens / mean))
        """Batches in an epoch, the last one counted by how full it is."""

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(self.epoch_length)

    def batch(self, index: int) -> list[int]:
        """Row indices of the index-th batch since the beginning."""
        epoch, position = divmod(index, self.batches_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._form(epoch))
        return self._epoch[1][position]

    def rows_seen(self, batches: int) -> list[int]:
        """Indices of the rows in the first so many batches, each once, in file order."""
        if batches >= self.batches_per_epoch:
            return list(range(len(self._lengths)))
        return sorted(row for index in range(batches) for row in self.batch(index))

    def _sampled(self, random: np.random.Generator) -> npt.NDArray[np.int64]:
        """Row indices in random order, each as often as its weight: systematic sampling."""
        order = random.permutation(len(self._lengths))
        if (self._weights == 1).all():
            return order
        upto = np.cumsum(self._weights[order]) * self._rows / self._weights.sum()
        upto[-1] = self._rows
        counts = np.diff(np.floor(upto + random.random()), prepend=0.0).astype(int)
        return random.permutation(np.repeat(order, counts))

    def _form(self, epoch: int) -> list[list[int]]:
        random = np.random.default_rng([self._seed, epoch])
        order = self._sampled(random)
        batches: list[list[int]] = []
        if self._tokens is None:
            pool = self._size * self._pool
            for start in range(0, len(order), pool):
                rows = self._alike(order[start : start + pool]).tolist()
                batches += [rows[n : n + self._size] for n in range(0, len(rows), self._size)]
        else:
            pools = -(-self.batches_per_epoch // self._pool)
            counts = np.diff(np.arange(pools + 1) * self.batches_per_epoch // pools)
            for rows, count in zip(self._evenly(order, counts), counts, strict=True):
                alike = self._alike(rows)
                batches += [b.tolist() for b in self._evenly(alike, np.ones(int(count)))]
        return [batches[i] for i in random.permutation(len(batches))]

    def _evenly(
        self, rows: npt.NDArray[np.int64], shares: npt.ArrayLike
    ) -> list[npt.NDArray[np.int64]]:
        """Rows cut, in order, into pieces with these shares of the tokens and no piece empty."""
        upto = np.cumsum(self._lengths[rows])
        wanted = np.cumsum(shares) / np.sum(shares) * upto[-1]
        cuts = np.searchsorted(upto, wanted[:-1] - 1e-6 * upto[-1]) + 1
        first, rest = np.arange(1, len(cuts) + 1), len(rows) - np.arange(len(cuts), 0, -1)
        cuts = np.minimum(np.maximum.accumulate(cuts - first) + first, rest)
        return np.split(rows, cuts)

    def _alike(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows in order of length."""
        return rows[np.argsort(self._lengths[rows], kind="stable")]


def rows_of_epoch(weights: Sequence[float] | npt.NDArray[np.float64]) -> int:
    """How many rows an epoch has, counting each as often as it comes."""
    return max(1, round(float(np.sum(weights))))


def sft_batch(rows: Sequence[Row], indices: Sequence[int]) -> SftBatch:
    """Pad conversations into one batch."""
    # One more than a multiple: the model sees all tokens but the last.
    width = _round_up(max(len(row.ids) for row in rows) - 1) + 1
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
    width = _round_up(max(map(len, responses)))
    return PairBatch(
        prefixes=pad(prefixes, _round_up(max(map(len, prefixes)))),
        prefix_lengths=np.array([len(prefix) for prefix in prefixes], np.int32),
        inputs=pad([[last, *ids[:-1]] for last, ids in zip(lasts, responses, strict=True)], width),
        targets=pad(responses, width),
        mask=pad([[1] * len(ids) for ids in responses], width).astype(np.bool_),
        rows=np.asarray(indices, np.int64),
        weight=len(rows),
        tokens=sum(map(len, prefixes)) + sum(map(len, responses)),
        origins=tuple(row.origin for row in rows),
    )


def lengths_of(rows: Sequence[Row] | Sequence[AnyPair]) -> list[int]:
    """Tokens of each row; rows on disk know theirs without being read."""
    return getattr(rows, "lengths", None) or [row_length(row) for row in rows]


def weights_of(rows: Sequence[Row] | Sequence[AnyPair]) -> list[float]:
    """How often an epoch has each row, on average."""
    return getattr(rows, "weights", None) or [row.weight for row in rows]


def parts_of(
    rows: Sequence[Row] | Sequence[AnyPair], *, apart: bool = True
) -> npt.NDArray[np.int64]:
    """Lengths by part, as a batch pads them: of a pair its prompt, and its responses together.

    Args:
        apart: of a rated row's two responses a batch has one, that to learn from or the other.
    """
    if len(rows) and isinstance(rows[0], AnyPair):
        pairs: Any = rows
        sides = 1 if apart and isinstance(rows[0], RatedRow) else 2
        return np.array([(len(r.prompt), sides * max(map(len, r.responses))) for r in pairs])
    return np.array(lengths_of(rows))[:, None]


def row_length(row: Row | AnyPair) -> int:
    """Tokens to learn from, and those before them."""
    if isinstance(row, Row):
        return len(row.ids)
    first, second = row.responses
    return len(row.prompt) + len(first) + len(second) * isinstance(row, PairRow)


def together() -> int:
    """Tokens, padding included, that this machine does best to compute at once."""
    return TOGETHER_GPU if on_gpu() else TOGETHER_CPU


def grouped(parts: npt.ArrayLike, tokens: int | None = None) -> list[list[int]]:
    """Indices in groups of like lengths, longest first, each of at most so many padded tokens.

    Args:
        parts: (rows,), or (rows, 2) where a row has two parts that are padded each on its own.
        tokens: absent, `together()`.
    """
    lengths = np.asarray(parts)
    if not len(lengths):
        return []
    lengths = lengths.reshape(len(lengths), -1)
    limit = tokens or together()
    ways = (_filled(order[::-1], lengths, limit) for order in _orders(lengths))
    return min(ways, key=lambda way: way[0])[1]


def _filled(
    order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], limit: int
) -> tuple[int, list[list[int]]]:
    """An order cut into groups, each as large as the limit allows; and their padded tokens."""
    groups: list[list[int]] = []
    padded, widest = 0, [0] * lengths.shape[1]
    for index, widths in zip(order.tolist(), _rounded(lengths[order]).tolist(), strict=True):
        wider = [*map(max, widest, widths)]
        if groups and sum(wider) * (len(groups[-1]) + 1) <= limit:
            padded += sum(wider) + (sum(wider) - sum(widest)) * len(groups[-1])
            groups[-1].append(index)
            widest = wider
        else:
            padded += sum(widths)
            groups.append([index])
            widest = widths
    return padded, groups


def _orders(lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Orders in which neighbours are of like length, shortest first.

    Where rows have two parts, no one order makes neighbours alike in both: they are sorted by the
    second, more or less coarsely, and among equals by the first.
    """
    for power in (0,) if lengths.shape[1] == 1 else range(0, 12, 2):
        yield np.lexsort((lengths[:, 0], lengths[:, -1] >> power))


def positions(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Where a mask is true, in the flattened array; -1 pads to one of few lengths.

    Where steps are compiled, to one of eight between any length and twice it: they are another
    dimension of a step's shape, and each shape is compiled.
    """
    found = np.flatnonzero(mask).astype(np.int32)
    eighth = 1 << max(0, len(found).bit_length() - 4) if on_gpu() else 1
    padded = np.full(_round_up(-(-len(found) // eighth) * eighth), -1, np.int32)
    padded[: len(found)] = found
    return padded


def _round_up(length: int) -> int:
    return max(1, int(_rounded(length)))


def _rounded(lengths: Any) -> Any:
    """As wide as sequences of such lengths are padded to."""
    bucket = BUCKET if on_gpu() else 1
    return -(-lengths // bucket) * bucket


def pad(sequences: Sequence[Sequence[int]], width: int | None = None) -> npt.NDArray[np.int32]:
    """Sequences as rows, zeros on the right up to a width; absent, that of the longest."""
    width = max(map(len, sequences)) if width is None else width
    padded = np.zeros((len(sequences), width), np.int32)
    for i, sequence in enumerate(sequences):
        padded[i, : len(sequence)] = sequence
    return padded
