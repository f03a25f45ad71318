"""The reference's last states: what the head reads, for each token of the responses, on disk.

They are for the term λ·KL, which needs the reference's probabilities of the whole vocabulary: D numbers
a token in place of V. A row has a state for each token of both responses, the chosen one first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from forty2.files import atomic_write
from forty2.inference.logprobs import PairBlockInput, Shortcuts, pair_arrays, run_on_responses
from forty2.inference.padding import PairBatch, group_by_length
from forty2.model.surgery import body
from forty2.progress import Progress, silent
from forty2.text.rows import AnyPair
from forty2.training.batches import pair_batch, parts_of
from forty2.training.frozen_states import FrozenStates

Bytes = npt.NDArray[np.uint8]
"""States as bytes, (..., D times the bytes of a number): numpy has no bfloat16."""


class StatesSize(NamedTuple):
    """The size of the stored states of some rows."""

    width: int
    """D"""
    dtype: mx.Dtype
    tokens: int

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return self.tokens * self.width * self.dtype.size


class ReferenceStates:
    """The stored states of some rows."""

    def __init__(
        self, path: Path, size: StatesSize, rows: Sequence[AnyPair], which: Sequence[int]
    ) -> None:
        counts = [_token_count(rows[i]) for i in which]
        ends = np.cumsum(counts)
        self._spans = {i: (end - n, end) for i, n, end in zip(which, counts, ends, strict=True)}
        self._size, self._rows = size, rows
        self._stored = np.memmap(path, np.uint8, "r").reshape(size.tokens, -1)

    def of_pairs(self, batch: PairBatch, sides: Sequence[int]) -> mx.array:
        """Read the states of a batch's responses, (kB, T, D), zero-padded."""
        pairs = len(batch.rows)
        states = np.zeros((*batch.targets.shape, self._stored.shape[1]), np.uint8)
        for n, index in enumerate(batch.rows.tolist()):
            start, end = self._spans[index]
            split = start + len(self._rows[index].responses[0])
            parts = self._stored[start:split], self._stored[split:end]
            for k, side in enumerate(sides):
                states[n + k * pairs, : len(parts[side])] = parts[side]
        return mx.array(states).view(self._size.dtype)


def reference_states_size(
    model: nn.Module, rows: Sequence[AnyPair], which: Sequence[int]
) -> StatesSize:
    """Compute the size of these rows' states."""
    one = body(model, mx.array([[0]]))  # lazy: nothing is computed
    return StatesSize(one.shape[-1], one.dtype, sum(_token_count(rows[i]) for i in which))


def store_reference_states(
    model: nn.Module,
    rows: Sequence[AnyPair],
    which: Sequence[int],
    path: Path,
    *,
    shortcuts: Shortcuts,
    frozen: FrozenStates | None = None,
    progress: Progress = silent,
) -> ReferenceStates:
    """Compute and store the states of these rows, or use a file that is complete.

    Rows are computed in the same batches every time, so a file made anew holds the same bits.

    Args:
        which: indices of the rows.
        path: file of the states, (tokens, D), without a header.
        shortcuts: optimisations that the model supports; the head must be among them.
        frozen: stored states of these rows at the entry of the trained blocks.
    """
    size = reference_states_size(model, rows, which)
    if not (path.exists() and path.stat().st_size == size.bytes):
        counts = np.array([_token_count(rows[i]) for i in which])
        starts = np.cumsum(counts) - counts
        done = 0
        with atomic_write(path) as file:
            for places in group_by_length(parts_of(rows, both_responses=True)[list(which)]):
                indices = [which[n] for n in places]
                found = _compute_states(model, rows, indices, shortcuts, frozen)
                for n, states in zip(places, found, strict=True):
                    file.seek(int(starts[n]) * size.width * size.dtype.size)
                    file.write(states.tobytes())
                done += len(places)
                progress("reference states", done, len(which), {})
    return ReferenceStates(path, size, rows, which)


def _compute_states(
    model: nn.Module,
    rows: Sequence[AnyPair],
    indices: Sequence[int],
    shortcuts: Shortcuts,
    frozen: FrozenStates | None,
) -> Iterator[Bytes]:
    """Yield the states of each of some rows, computed in one batch."""
    batch = pair_batch([rows[i] for i in indices], indices)
    block_input = None
    if frozen is not None:
        prefixes, inputs = frozen.of_pairs(batch)
        block_input = PairBlockInput(prefixes, inputs, frozen.depth)
    output = run_on_responses(model, pair_arrays(batch), shortcuts, block_input)
    states = np.asarray(output.view(mx.uint8))
    for n, index in enumerate(indices):
        sides = zip((n, n + len(indices)), rows[index].responses, strict=True)
        yield np.concatenate([states[at, : len(ids)] for at, ids in sides])


def _token_count(row: AnyPair) -> int:
    return sum(map(len, row.responses))
