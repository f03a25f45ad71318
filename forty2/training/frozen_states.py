"""The output of the frozen blocks, computed once for each row and stored on disk.

With adapters on the upper blocks alone, the lower ones compute the same for a row in every epoch,
in the reference pass and in every validation. Their output, the states at the entry of the first
trained block, is stored bit for bit, and the trained blocks start from it.

A row has a state, a vector of width D, for each token that a batch feeds to the model: in a
conversation all but the last, in a pair the prefix's, then the chosen and the rejected inputs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2.inference.logprobs import Shortcuts, compute_pair_block_input, pair_arrays
from forty2.inference.padding import PairBatch
from forty2.model.kv_cache import segment_cache
from forty2.model.surgery import compute_block_input, frozen_depth
from forty2.progress import Progress, silent
from forty2.text.row_kinds import CONVERSATIONS
from forty2.text.rows import AnyPair, Row
from forty2.training.batches import (
    BOTH,
    SftBatch,
    pair_batch,
    sft_batch,
)
from forty2.training.objectives.phase import Phase
from forty2.training.stored_states import Bytes, Rows, Size, StoredStates, store

MIN_PASSES = 1.5
"""Smallest number of passes over a row for which storing its states saves time."""


class FrozenStates(StoredStates):
    """The stored states of some rows at the entry of the first trained block."""

    def __init__(self, path: Path, size: Size, rows: Rows, which: Sequence[int]) -> None:
        super().__init__(path, size, rows, which, [state_count(rows[i]) for i in which])

    def of_pairs(self, batch: PairBatch, sides: Sequence[int] = BOTH) -> list[mx.array]:
        """Read the states of a batch's prefixes (B, P, D) and of its inputs (kB, T, D), zero-padded."""
        pairs = len(batch.rows)
        prefixes = self._zeros(pairs, batch.prefixes.shape[1])
        inputs = self._zeros(*batch.inputs.shape)
        for n, index in enumerate(batch.rows.tolist()):
            row = self._rows[index]
            given = len(row.prompt) - 1
            prefix, *responses = np.split(
                self._states(index), [given, given + len(row.responses[0])]
            )
            prefixes[n, :given] = prefix
            for k, side in enumerate(sides):
                inputs[n + k * pairs, : len(responses[side])] = responses[side]
        return [self._array(prefixes), self._array(inputs)]

    def of_rows(self, batch: SftBatch) -> list[mx.array]:
        """Read the states of a batch's tokens without the last column, (B, T-1, D), zero-padded."""
        states = self._zeros(batch.ids.shape[0], batch.ids.shape[1] - 1)
        for n, index in enumerate(batch.rows.tolist()):
            stored = self._states(index)
            states[n, : len(stored)] = stored
        return [self._array(states)]


def state_count(row: Row | AnyPair) -> int:
    """Count the tokens of a row that a batch feeds to the model."""
    if isinstance(row, AnyPair):
        return len(row.prompt) - 1 + sum(map(len, row.responses))
    return len(row.ids) - 1


def frozen_states_size(model: nn.Module, rows: Rows, which: Iterable[int]) -> Size:
    """Compute the size of these rows' states."""
    depth = frozen_depth(model)
    one = compute_block_input(model, mx.array([[0]]), depth)
    return Size(depth, one.shape[-1], one.dtype, sum(state_count(rows[i]) for i in which))


def worth_storing(phase: Phase, passes: float, processes: int) -> bool:
    """Return whether storing states takes less time than computing them at each use.

    The reference pass is one more use. It counts even if its result is stored: a resumed run must
    decide the same.

    Args:
        passes: average number of times that the batches use each row.
        processes: number that train together, each of which uses its share of the rows.
    """
    return (passes + phase.needs_reference) / processes >= MIN_PASSES


def states_to_store(
    model: nn.Module,
    phase: Phase,
    rows: Rows,
    which: Sequence[int],
    passes: float,
    *,
    shortcuts: Shortcuts,
    processes: int = 1,
) -> Size | None:
    """Return the size of the states that a phase should store; None: none.

    None where the model cannot go on from stored states, where computing them again takes less time,
    or where they need more than the recipe's `replay_gb`.

    Args:
        which: indices of the rows that the phase uses.
        passes: average number of times that its batches use each of them.
        shortcuts: optimisations that the model supports.
        processes: number that train together. Each stores the states of all rows, since sending them
            may take longer and its share of the rows differs in every epoch.
    """
    shares_prompts = shortcuts.shared_prompts or phase.row_kind is CONVERSATIONS
    if not worth_storing(phase, passes, processes):
        return None
    if not (shortcuts.split_head and shares_prompts and phase.replay_gb):
        return None
    size = frozen_states_size(model, rows, which)
    return size if size.depth and size.bytes <= phase.replay_gb * 1e9 else None


def states_key(fingerprint: str, size: Size, rows: Rows, which: Sequence[int]) -> str:
    """Hash what the stored states depend on, to the bit: rows are computed in batches of all of them.

    Args:
        fingerprint: hash of the base model's weights.
        which: indices of the rows.
    """
    digest = hashlib.sha256(json.dumps([fingerprint, size.depth, str(size.dtype)]).encode())
    for i in which:
        row = rows[i]
        if isinstance(row, AnyPair):
            parts: list[object] = [row.prompt, *row.responses]
        else:
            parts = [list(row.ids), row.segments]
        digest.update(json.dumps(parts, default=int).encode())
    return digest.hexdigest()


def has_room(size: Size, folder: Path) -> bool:
    """Return whether states of this size leave a tenth of the folder's disk free."""
    folder.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(folder)
    return size.bytes < disk.free - disk.total / 10


def store_states(
    model: nn.Module,
    rows: Rows,
    which: Sequence[int],
    size: Size,
    path: Path,
    *,
    progress: Progress = silent,
    stage: str = "frozen blocks",
) -> FrozenStates:
    """Compute and store the frozen blocks' output for these rows, or use a file that is complete.

    Args:
        which: indices of the rows.
        size: from `frozen_states_size`.
        path: file, see `stored_states.store`.
    """
    store(
        path,
        size,
        rows,
        which,
        [state_count(rows[i]) for i in which],
        lambda indices: _compute_states(model, rows, indices, size),
        lambda done: progress(stage, done, len(which), {}),
    )
    return FrozenStates(path, size, rows, which)


def _compute_states(
    model: nn.Module, rows: Rows, indices: Sequence[int], size: Size
) -> Iterable[Bytes]:
    """Yield the states of each of some rows, computed in one batch."""
    batch_rows: Any = [rows[i] for i in indices]
    if isinstance(batch_rows[0], AnyPair):
        batch = pair_batch(batch_rows, indices)
        entry = compute_pair_block_input(model, pair_arrays(batch), size.depth)
        prefixes, inputs = (np.asarray(part.view(mx.uint8)) for part in entry[:2])
        for n, row in enumerate(batch_rows):
            yield np.concatenate(
                [
                    prefixes[n, : len(row.prompt) - 1],
                    inputs[n, : len(row.responses[0])],
                    inputs[n + len(batch_rows), : len(row.responses[1])],
                ]
            )
        return
    packed = sft_batch(batch_rows, indices)
    cache = (
        segment_cache(model, mx.array(packed.segments)[:, :-1])
        if packed.segments is not None
        else None
    )
    states = np.asarray(
        compute_block_input(model, mx.array(packed.ids)[:, :-1], size.depth, cache).view(mx.uint8)
    )
    for n, row in enumerate(batch_rows):
        yield states[n, : len(row.ids) - 1]
