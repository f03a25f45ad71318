"""The reference's last states: what the head reads, for each token of the responses, on disk.

They are for the term λ·KL, which needs the reference's probabilities of the whole vocabulary: D numbers
a token in place of V. A row has a state for each token of both responses, the chosen one first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2.inference.logprobs import PairBlockInput, Shortcuts, pair_arrays, run_on_responses
from forty2.inference.padding import PairBatch
from forty2.model.surgery import blocks, body
from forty2.progress import Progress, silent
from forty2.text.rows import AnyPair
from forty2.training.batches import pair_batch
from forty2.training.frozen_states import FrozenStates
from forty2.training.stored_states import Bytes, Size, StoredStates, store


class ReferenceStates(StoredStates):
    """The stored states of some rows' responses after the last block."""

    def __init__(
        self, path: Path, size: Size, rows: Sequence[AnyPair], which: Sequence[int]
    ) -> None:
        super().__init__(path, size, rows, which, [_token_count(rows[i]) for i in which])

    def of_pairs(self, batch: PairBatch, sides: Sequence[int]) -> mx.array:
        """Read the states of a batch's responses, (kB, T, D), zero-padded."""
        pairs = len(batch.rows)
        states = self._zeros(*batch.targets.shape)
        for n, index in enumerate(batch.rows.tolist()):
            parts = np.split(self._states(index), [len(self._rows[index].responses[0])])
            for k, side in enumerate(sides):
                states[n + k * pairs, : len(parts[side])] = parts[side]
        return self._array(states)


def reference_states_size(model: nn.Module, rows: Sequence[AnyPair], which: Sequence[int]) -> Size:
    """Compute the size of these rows' states."""
    one = body(model, mx.array([[0]]))  # lazy: nothing is computed
    tokens = sum(_token_count(rows[i]) for i in which)
    return Size(len(blocks(model)), one.shape[-1], one.dtype, tokens)


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

    Args:
        which: indices of the rows.
        path: file, see `stored_states.store`.
        shortcuts: optimisations that the model supports; the head must be among them.
        frozen: stored states of these rows at the entry of the trained blocks.
    """
    size = reference_states_size(model, rows, which)
    store(
        path,
        size,
        rows,
        which,
        [_token_count(rows[i]) for i in which],
        lambda indices: _compute_states(model, rows, indices, shortcuts, frozen),
        lambda done: progress("reference states", done, len(which), {}),
    )
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
