"""Token rows padded into batches of few shapes.

Axes: B prompts, k responses to each, P and T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forty2.machine import on_gpu

BUCKET = 8
"""Tokens; on a GPU, sequences are padded to a multiple of this, to compile steps for few shapes."""
BATCH_TOKENS_GPU, BATCH_TOKENS_CPU = 4096, 512
"""Tokens computed at once, enough for fast matrix products. More tokens take more memory and, on the
CPU, more time, because activations no longer fit into its caches."""


class PairBatch(NamedTuple):
    """B prompts, each once, and k responses to each; for pairs, all chosen, then all rejected.

    The first token of a response is predicted from the last token of its prompt, so the response's
    inputs begin with that: prompt [a b c] and response [x y] become prefix [a b], inputs [c x] and
    targets [x y].
    """

    prefixes: npt.NDArray[np.int32]
    """Prompts without their last token, (B, P), padded on the right."""
    prefix_lengths: npt.NDArray[np.int32]
    """Tokens of each prefix without padding, (B,)."""
    inputs: npt.NDArray[np.int32]
    """Last token of the prompt and response without its last token, (kB, T), padded on the right."""
    targets: npt.NDArray[np.int32]
    """Tokens of the response, (kB, T), padded on the right."""
    mask: npt.NDArray[np.bool_]
    """Supervised tokens of `targets`, (kB, T), false on padding."""
    rows: npt.NDArray[np.int64]
    """Index of each row in the data, (B,), to look up its reference log-probabilities."""
    weight: int
    """Number of rows, by which the summed loss is divided."""
    tokens: int
    """Number of tokens without padding, each prompt once."""
    origins: tuple[str, ...]
    """File and line of each row."""


def batch_tokens() -> int:
    """Return the number of tokens, padding included, that this machine computes fastest at once."""
    return BATCH_TOKENS_GPU if on_gpu() else BATCH_TOKENS_CPU


def pad(sequences: Sequence[Sequence[int]], width: int | None = None) -> npt.NDArray[np.int32]:
    """Stack sequences as rows, zeros on the right, up to `width` or the longest one's length."""
    width = max(map(len, sequences)) if width is None else width
    padded = np.zeros((len(sequences), width), np.int32)
    for i, sequence in enumerate(sequences):
        padded[i, : len(sequence)] = sequence
    return padded


def padded_width(length: int) -> int:
    """Return the width that sequences of at most this length are padded to."""
    return max(1, -(-length // _bucket()) * _bucket())


def positions(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return the positions where a mask is true, in the flattened array, padded with -1.

    The number of positions is part of a step's shape, and each shape is compiled. So on a GPU they
    are padded to one of eight lengths between any length and twice that.
    """
    found = np.flatnonzero(mask).astype(np.int32)
    eighth = 1 << max(0, len(found).bit_length() - 4) if on_gpu() else 1
    padded = np.full(padded_width(-(-len(found) // eighth) * eighth), -1, np.int32)
    padded[: len(found)] = found
    return padded


def group_by_length(lengths: npt.ArrayLike, tokens: int | None = None) -> list[list[int]]:
    """Group indices of rows of similar length, longest first, within a limit of padded tokens.

    Args:
        lengths: tokens of each row, (rows,), or of its two parts, (rows, 2), which are padded
            separately.
        tokens: most tokens of a group, padding included; a longer row is a group of its own. None:
            `batch_tokens()`.
    """
    widths = np.asarray(lengths)
    if not len(widths):
        return []
    widths = widths.reshape(len(widths), -1)
    limit = tokens or batch_tokens()
    candidates = (_fill_groups(order[::-1], widths, limit) for order in _orders(widths))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def _fill_groups(
    order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], limit: int
) -> tuple[int, list[list[int]]]:
    """Cut an order into groups, each as large as the limit allows.

    Returns:
        Padded tokens of all groups, and the groups.
    """
    groups: list[list[int]] = []
    padded, widest = 0, [0] * lengths.shape[1]
    rounded = -(-lengths[order] // _bucket()) * _bucket()
    for index, widths in zip(order.tolist(), rounded.tolist(), strict=True):
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
    """Yield orders in which neighbours have similar lengths, shortest first.

    For rows with two parts, no order makes neighbours similar in both. So rows are sorted by the
    second part, more or less coarsely, and rows with equal second parts by the first.
    """
    for power in (0,) if lengths.shape[1] == 1 else range(0, 12, 2):
        yield np.lexsort((lengths[:, 0], lengths[:, -1] >> power))


def _bucket() -> int:
    return BUCKET if on_gpu() else 1
