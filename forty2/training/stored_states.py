"""Hidden states of rows on disk, bit for bit: what a model computes once and training reads often."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from forty2.files import atomic_write
from forty2.inference.padding import group_by_length
from forty2.text.rows import AnyPair, Row
from forty2.training.batches import parts_of

Rows = Sequence[Row] | Sequence[AnyPair]
"""Rows of one kind."""
Bytes = npt.NDArray[np.uint8]
"""States as bytes, (..., D times the bytes of a number): numpy has no bfloat16."""


class Size(NamedTuple):
    """The size of the stored states of some rows."""

    depth: int
    """Blocks that have computed them."""
    width: int
    """D"""
    dtype: mx.Dtype
    tokens: int

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return self.tokens * self.width * self.dtype.size


class StoredStates:
    """The stored states of some rows; a subclass says of which tokens, and reads batches."""

    def __init__(
        self, path: Path, size: Size, rows: Rows, which: Sequence[int], counts: Sequence[int]
    ) -> None:
        """Open the states of some rows.

        Args:
            path: file that `store` wrote.
            which: indices of the rows.
            counts: states of each of them.
        """
        ends = np.cumsum(counts)
        self._spans = {
            i: (end - count, end) for i, count, end in zip(which, counts, ends, strict=True)
        }
        self._size = size
        self._rows: Sequence[Any] = rows
        self._stored = np.memmap(path, np.uint8, "r").reshape(size.tokens, -1)

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return self._size.bytes

    @property
    def depth(self) -> int:
        """Blocks that have computed them."""
        return self._size.depth

    def _states(self, index: int) -> Bytes:
        start, end = self._spans[index]
        return self._stored[start:end]

    def _zeros(self, rows: int, columns: int) -> Bytes:
        return np.zeros((rows, columns, self._stored.shape[1]), np.uint8)

    def _array(self, states: Bytes) -> mx.array:
        return mx.array(states).view(self._size.dtype)


def store(
    path: Path,
    size: Size,
    rows: Rows,
    which: Sequence[int],
    counts: Sequence[int],
    compute: Callable[[Sequence[int]], Iterable[Bytes]],
    report: Callable[[int], None],
) -> None:
    """Compute and store the states of some rows, unless the file is complete.

    Rows are computed in the same batches every time, so a file made anew holds the same bits.

    Args:
        path: file of the states, (tokens, D), without a header; written whole or not at all.
        which: indices of the rows.
        counts: states of each of them.
        compute: function that yields the states of each of some rows, given by their indices.
        report: function that is told how many rows are done.
    """
    if path.exists() and path.stat().st_size == size.bytes:
        return
    starts = np.cumsum(counts) - counts
    done = 0
    with atomic_write(path) as file:
        for places in group_by_length(parts_of(rows, both_responses=True)[list(which)]):
            found = compute([which[n] for n in places])
            for n, states in zip(places, found, strict=True):
                file.seek(int(starts[n]) * size.width * size.dtype.size)
                file.write(states.tobytes())
            done += len(places)
            report(done)
