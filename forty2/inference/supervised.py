"""Log-probabilities of the supervised tokens of whole rows, summed by row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2.inference.logprobs import run_model, supported_shortcuts, target_logps
from forty2.inference.padding import group_by_length, pad, positions

MaskedRow = tuple[Sequence[int], Sequence[bool]]
"""Token ids, and which of them are supervised; the first one is not, since nothing predicts it."""


def supervised_sums(model: nn.Module, rows: Sequence[MaskedRow]) -> Iterator[dict[int, float]]:
    """Score the rows in batches of similar length, without an effect on the model.

    Yields:
        For each batch, the summed log-probability in nats by the row's index.
    """
    shortcuts = supported_shortcuts(model)
    for group in group_by_length([len(ids) for ids, _ in rows]):
        ids = pad([rows[n][0] for n in group])
        mask = pad([[int(on) for on in rows[n][1]] for n in group]).astype(bool)[:, 1:]
        inputs, targets = mx.array(ids[:, :-1]), mx.array(ids[:, 1:])
        where = positions(mask)
        output = run_model(model, inputs, shortcuts)
        logps = np.asarray(target_logps(model, output, targets, mx.array(where), shortcuts))
        ends = np.cumsum(mask.sum(axis=1))
        parts = np.split(logps[: ends[-1]], ends[:-1])
        yield {n: math.fsum(part.tolist()) for n, part in zip(group, parts, strict=True)}
