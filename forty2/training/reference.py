"""The reference: log-probabilities of the policy as a phase begins, computed once and stored."""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from forty2.errors import TrainingError
from forty2.files import JsonObject, write_bytes
from forty2.inference.logprobs import (
    PairBlockInput,
    Shortcuts,
    pair_arrays,
    response_logps,
    supported_shortcuts,
)
from forty2.inference.padding import group_by_length
from forty2.progress import Progress, silent
from forty2.text.rows import AnyPair, PairRow
from forty2.training.batches import pair_batch, parts_of
from forty2.training.frozen_states import FrozenStates
from forty2.training.processes import ALONE, Group

TokenLogps = dict[int, npt.NDArray[np.float32]]
"""Log-probabilities in nats by row index, (tokens of both responses,), the chosen response first."""


def reference_key(fingerprint: str, adapter: dict[str, mx.array], rows: Sequence[AnyPair]) -> str:
    """Hash what reference log-probabilities depend on.

    Args:
        fingerprint: hash of the base model's weights.
        adapter: the adapter's arrays by name.
        rows: all rows that are scored.
    """
    digest = hashlib.sha256(fingerprint.encode())
    for name, value in sorted(adapter.items()):
        digest.update(name.encode())
        digest.update(np.asarray(value.astype(mx.float32)).tobytes())
    for row in rows:
        digest.update(json.dumps([row.prompt, *row.responses, *(row.masks or ())]).encode())
    return digest.hexdigest()


def reference_logps(
    model: nn.Module,
    rows: Sequence[AnyPair],
    which: Sequence[int],
    store: Path,
    *,
    shortcuts: Shortcuts | None = None,
    frozen: FrozenStates | None = None,
    progress: Progress = silent,
    group: Group = ALONE,
) -> TokenLogps:
    """Compute the log-probabilities of some rows' response tokens, or read them from `store`.

    Args:
        which: indices of the rows.
        store: an .npz file named by `reference_key`; written whole or not at all.
        shortcuts: optimisations that the model supports; None: find out by trying.
        frozen: stored states of these rows.
        group: processes that share the work; each gets and stores the results of all rows.

    Raises:
        TrainingError: a log-probability is not finite.
    """
    sizes = [sum(map(len, rows[i].responses)) for i in which]
    stored = _read_store(store, sum(sizes))
    missing = group.all_max(stored is None)
    if not missing:
        assert stored is not None
        return _by_row(stored, which, sizes)
    own = _token_logps(
        model,
        rows,
        group.shard(which),
        shortcuts or supported_shortcuts(model),
        frozen,
        progress,
        "reference",
    )
    zeros = [np.zeros(size, np.float32) for size in sizes]
    parts = [own.get(i, zero) for i, zero in zip(which, zeros, strict=True)]
    flat = np.asarray(group.all_sum([mx.array(np.concatenate(parts))])[0])
    result = _by_row(flat, which, sizes)
    for i in which:
        if not np.isfinite(result[i]).all():
            raise TrainingError(
                f"{rows[i].origin}: the model gives this row a log-probability that is not finite; "
                "remove the row, or use the model in a wider number format"
            )
    _write_store(store, flat)
    return result


def token_margins(rows: Sequence[PairRow], logps: TokenLogps) -> list[float]:
    """Compute by how much each pair's chosen response is likelier than the rejected one, in nats a token.

    Means over tokens are compared, because sums would mostly compare the lengths.

    Args:
        logps: log-probabilities of all rows.
    """
    margins = []
    for index, row in enumerate(rows):
        sides = np.split(logps[index].astype(np.float64), [len(row.chosen)])
        chosen, rejected = (
            side.sum() / sum(mask) for side, mask in zip(sides, row.response_masks, strict=True)
        )
        margins.append(float(chosen - rejected))
    return margins


def pair_logprobs(
    model: nn.Module, rows: Sequence[PairRow], *, progress: Progress = silent
) -> list[JsonObject]:
    """Score both responses of each pair, as `forty2 logprobs` writes them.

    Returns:
        For each row the number of prompt tokens and, by response, the supervised ids and their
        summed log-probability in nats.
    """
    shortcuts = supported_shortcuts(model)
    scored = _token_logps(model, rows, range(len(rows)), shortcuts, None, progress, "logprobs")
    result: list[JsonObject] = []
    for i, row in enumerate(rows):
        logps, split = scored[i], len(row.chosen)
        parts = slice(split), slice(split, None)
        result.append(
            {"prompt_tokens": len(row.prompt)}
            | {
                side: {
                    "ids": list(compress(ids, mask)),
                    "logprob": math.fsum(logps[part].tolist()),
                }
                for side, ids, mask, part in zip(
                    ("chosen", "rejected"), row.responses, row.response_masks, parts, strict=True
                )
            }
        )
    return result


def _token_logps(
    model: nn.Module,
    rows: Sequence[AnyPair],
    which: Sequence[int],
    shortcuts: Shortcuts,
    frozen: FrozenStates | None,
    progress: Progress,
    stage: str,
) -> TokenLogps:
    """Compute the log-probabilities of some rows' response tokens, in batches of similar length."""
    result: TokenLogps = {}
    for places in group_by_length(parts_of(rows, both_responses=True)[list(which)]):
        indices = [which[n] for n in places]
        batch = pair_batch([rows[i] for i in indices], indices)
        states = None
        if frozen is not None:
            prefixes, inputs = frozen.of_pairs(batch)
            states = PairBlockInput(prefixes, inputs, frozen.depth)
        logps = np.asarray(response_logps(model, pair_arrays(batch), shortcuts, states))
        for n, index in enumerate(indices):
            sides = zip((n, n + len(indices)), rows[index].responses, strict=True)
            # Tokens that are not supervised count as nothing.
            scored = [np.where(batch.mask[at], logps[at], 0)[: len(ids)] for at, ids in sides]
            result[index] = np.concatenate(scored)
        progress(stage, len(result), len(which), {})
    return result


def _by_row(
    flat: npt.NDArray[np.float32], which: Sequence[int], sizes: Sequence[int]
) -> TokenLogps:
    """Split (tokens,) log-probabilities into one array per row."""
    return dict(zip(which, np.split(flat, np.cumsum(sizes)[:-1]), strict=True))


def _read_store(store: Path, size: int) -> npt.NDArray[np.float32] | None:
    """Read (size,) stored log-probabilities; None where the file is absent or damaged."""
    try:
        with np.load(io.BytesIO(store.read_bytes())) as saved:  # numpy refuses pickled objects
            logps: npt.NDArray[np.float32] = saved["logps"]
            intact = hashlib.sha256(logps.tobytes()).hexdigest() == str(saved["sha256"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return logps if intact and logps.shape == (size,) else None


def _write_store(store: Path, logps: npt.NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, logps=logps, sha256=np.array(hashlib.sha256(logps.tobytes()).hexdigest()))
    write_bytes(store, buffer.getvalue())
