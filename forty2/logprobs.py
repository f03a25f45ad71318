"""Token and sequence log-probabilities, in fp32 whatever dtype the weights have.

Axes: B sequences, T tokens, V vocabulary, H heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn

ROW = 256  # one level of the log-sum-exp; two levels of 256 span a 65k vocabulary


def logsumexp(logits: mx.array) -> mx.array:
    """log Σ exp over the last axis, in fp32, in two levels. Shape (..., V) -> (...).

    One fp32 sum over a large vocabulary drifts on the CPU: 1e-4 a token at 49k entries, which a
    500-token answer turns into 0.05. Summing rows of 256 first is right to 6e-7.
    """
    logits = logits.astype(mx.float32)
    vocabulary = logits.shape[-1]
    if vocabulary % ROW:
        padding = [(0, 0)] * (logits.ndim - 1) + [(0, -vocabulary % ROW)]
        logits = mx.pad(logits, padding, constant_values=-mx.inf)
    rows = logits.reshape(*logits.shape[:-1], -1, ROW)
    return mx.logsumexp(mx.logsumexp(rows, axis=-1), axis=-1)


def token_logps(logits: mx.array, targets: mx.array) -> mx.array:
    """log p(target) at each position: logits (B, T, V), targets (B, T) -> (B, T), fp32."""
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    return picked.astype(mx.float32) - logsumexp(logits)


def sequence_logps(model: nn.Module, ids: mx.array, mask: mx.array) -> mx.array:
    """Summed log-probability of the supervised tokens of each row.

    Args:
        model: anything that maps token ids (B, T) to logits (B, T, V).
        ids: (B, T) token ids, padded on the right.
        mask: (B, T) true where a token is supervised; never true in column 0 or on padding.

    Returns:
        (B,) fp32.
    """
    logps = token_logps(model(ids[:, :-1]), ids[:, 1:])
    return mx.where(mask[:, 1:], logps, 0.0).sum(axis=-1)


class _Layer:
    """One layer's keys and values, spoken to through the cache protocol of mlx-lm's models.

    The prefix (1, H, P, D) is shared by every row of the batch that follows it; nothing is
    overwritten, so any number of batches may follow the same prefix.
    """

    def __init__(self, prefix: tuple[mx.array, mx.array] | None) -> None:
        self.prefix = prefix
        self.offset = 0 if prefix is None else prefix[0].shape[2]
        self.state = prefix

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.prefix is not None:
            rows = keys.shape[0]
            keys, values = (
                mx.concatenate([mx.broadcast_to(old, (rows, *old.shape[1:])), new], axis=2)
                for old, new in zip(self.prefix, (keys, values), strict=True)
            )
        self.state = (keys, values)
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        total = self.offset + length
        if window_size is not None and total > window_size:
            query = mx.arange(self.offset, total)[:, None]
            key = mx.arange(total)[None]
            return (query >= key) & (query < key + window_size)
        if return_array:
            return mx.arange(self.offset, total)[:, None] >= mx.arange(total)[None]
        return None if length == 1 else "causal"  # "causal" is aligned to the last query


class Scored(NamedTuple):
    """What a continuation scored: its summed log-probability and whether it is the greedy one."""

    logp: float
    greedy: bool


class SharedPrefix:
    """A token prefix run through the model once, to be followed by many continuations.

    `prefix.extend(ids)` is a longer prefix; `prefix.score(rows)` scores rows that follow it. Any
    attention model that keeps its keys and values through mlx-lm's cache protocol will do;
    `can_share` tells.
    """

    def __init__(
        self, model: nn.Module, states: Sequence[tuple[mx.array, mx.array] | None] | None = None
    ) -> None:
        self._model = model
        self._states = states if states is not None else [None] * len(cast(Any, model).layers)

    def extend(self, ids: Sequence[int]) -> SharedPrefix:
        """This prefix with `ids` after it."""
        if not ids:
            return self
        layers = [_Layer(state) for state in self._states]
        _ = self._model(mx.array([list(ids)]), cache=layers)
        states = [layer.state for layer in layers]
        mx.eval(states)
        return SharedPrefix(self._model, states)

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scored]:
        """Score each `(given, scored)` row after this prefix; `given` holds at least one id."""
        caches = [_Layer(state) for state in self._states]
        return score_rows(lambda ids: self._model(ids, cache=caches), rows)


def can_share(model: nn.Module) -> bool:
    """Whether every layer keeps plain keys and values (no recurrent or compressed state)."""
    make_cache: Callable[[], list[Any]] | None = getattr(model, "make_cache", None)
    plain = {"KVCache", "RotatingKVCache"}
    return make_cache is None or all(type(layer).__name__ in plain for layer in make_cache())


def score_rows(
    forward: Callable[[mx.array], mx.array], rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[Scored]:
    """Score `(given, scored)` rows of ids in one right-padded batch.

    Args:
        forward: token ids (B, T) to logits (B, T, V): a model, or one behind a prefix.
        rows: the log-probabilities of the ids in `scored` after `given` are summed, in float64.
    """
    lengths = [len(given) + len(scored) for given, scored in rows]
    padded = mx.array(
        [
            [*given, *scored] + [0] * (max(lengths) - length)
            for (given, scored), length in zip(rows, lengths, strict=True)
        ]
    )
    logits, targets = forward(padded[:, :-1]), padded[:, 1:]
    logps = token_logps(logits, targets)
    best = mx.argmax(logits, axis=-1) == targets
    mx.eval(logps, best)
    result = []
    for row, (given, scored) in enumerate(rows):
        span = slice(len(given) - 1, len(given) + len(scored) - 1)
        values = cast(list[float], logps[row, span].tolist())
        result.append(Scored(math.fsum(values), bool(best[row, span].all().item())))
    return result
