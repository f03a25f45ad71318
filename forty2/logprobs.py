"""Token and sequence log-probabilities, in fp32 whatever dtype the weights have.

Axes: B sequences, T tokens, V vocabulary, H heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

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


def response_logps(
    model: nn.Module,
    prefixes: mx.array,
    prefix_lengths: mx.array,
    inputs: mx.array,
    targets: mx.array,
    *,
    share: bool,
) -> mx.array:
    """log p of each response token; differentiable through the responses and their prompts.

    Shared, a prompt is computed once and its keys and values are attended by all its responses;
    the head sees response tokens only. Otherwise whole rows are computed: the same numbers.

    Args:
        prefixes: (B, P) prompts without their last token, padded on the right.
        prefix_lengths: (B,)
        inputs: (kB, T) last prompt token and response but its last; row r belongs to prompt r mod B.
        targets: (kB, T) response tokens.
        share: compute prompts once; only for models that `can_share`.

    Returns:
        (kB, T) fp32; entries on padding mean nothing.
    """
    copies = inputs.shape[0] // prefixes.shape[0]
    lengths = mx.concatenate([prefix_lengths] * copies)
    if share:
        prompts = [_Layer() for _ in _blocks(model)]
        model(prefixes, cache=prompts)
        follow = [_Layer(prompt.kept(copies), lengths) for prompt in prompts]
        return token_logps(model(inputs, cache=follow), targets)
    # Whole rows: column j is the prefix's where it reaches, then the inputs'.
    columns = mx.arange(prefixes.shape[1] + inputs.shape[1])[None]
    within = columns - lengths[:, None]
    rows = mx.where(
        within < 0,
        mx.pad(mx.concatenate([prefixes] * copies), [(0, 0), (0, inputs.shape[1])]),
        mx.take_along_axis(inputs, mx.clip(within, 0, inputs.shape[1] - 1), axis=1),
    )
    positions = lengths[:, None] + mx.arange(inputs.shape[1])[None]
    logits = mx.take_along_axis(model(rows), positions[..., None], axis=1)
    return token_logps(logits, targets)


class _Layer:
    """One layer's keys and values, spoken to through the cache protocol of mlx-lm's models.

    Nothing is overwritten, so any number of batches may follow the same prefix, and gradients flow
    through it. `prefix` is (keys, values), each (B, H, P, D); `lengths`, (B,), says how much of
    each row of it is real, when not all is.
    """

    def __init__(
        self, prefix: tuple[mx.array, mx.array] | None = None, lengths: mx.array | None = None
    ) -> None:
        self._prefix = prefix
        self._lengths = lengths
        self._width = 0 if prefix is None else prefix[0].shape[2]
        self.offset: int | mx.array = self._width if lengths is None else lengths
        self._state = prefix

    def kept(self, copies: int = 1) -> tuple[mx.array, mx.array]:
        """Keys and values after a forward pass, the rows repeated as a whole so many times."""
        assert self._state is not None
        keys, values = self._state
        if copies == 1:
            return keys, values
        return mx.concatenate([keys] * copies), mx.concatenate([values] * copies)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self._prefix is not None:
            rows = keys.shape[0]
            keys, values = (
                mx.concatenate([mx.broadcast_to(old, (rows, *old.shape[1:])), new], axis=2)
                for old, new in zip(self._prefix, (keys, values), strict=True)
            )
        self._state = (keys, values)
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        total = self._width + length
        windowed = window_size is not None and total > window_size
        if self._lengths is None and not windowed and not return_array:
            return None if length == 1 else "causal"  # "causal" is aligned to the last query
        key = mx.arange(total)
        if self._lengths is None:
            place = key[None]
            real = mx.ones((1, total), mx.bool_)
        else:
            # Behind a shorter prefix the new keys sit further left than their column.
            gap = self._width - self._lengths[:, None]
            place = mx.where(key < self._width, key, key - gap)
            real = (key < self._lengths[:, None]) | (key >= self._width)
        query = place[:, None, self._width :, None]
        place, real = place[:, None, None], real[:, None, None]
        mask = (place <= query) & real
        return mask & (place > query - window_size) if window_size is not None else mask


class _Segments:
    """One layer's attention within the segments of packed rows, in the same protocol.

    Positions run on through a row. Attention with rotary positions sees only their differences,
    so each segment's log-probabilities are those it has alone.
    """

    offset = 0

    def __init__(self, segments: mx.array) -> None:
        self._segments = segments

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        place = mx.arange(length)
        query, key = place[:, None], place[None]
        mask = key <= query
        if window_size is not None:
            mask = mask & (key > query - window_size)
        return mask[None] & (self._segments[:, :, None] == self._segments[:, None, :])[:, None]


def segment_cache(model: nn.Module, segments: mx.array) -> list[Any]:
    """What keeps packed rows from seeing each other: pass it to the model as its cache.

    Args:
        segments: (B, T), equal where tokens belong to one row.
    """
    return [_Segments(segments) for _ in _blocks(model)]


def _blocks(model: nn.Module) -> Sequence[nn.Module]:
    return cast(Sequence[nn.Module], cast(Any, model).layers)


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
        self._states = states if states is not None else [None] * len(_blocks(model))

    def extend(self, ids: Sequence[int]) -> SharedPrefix:
        """This prefix with `ids` after it."""
        if not ids:
            return self
        layers = [_Layer(state) for state in self._states]
        _ = self._model(mx.array([list(ids)]), cache=layers)
        states = [layer.kept() for layer in layers]
        mx.eval(states)
        return SharedPrefix(self._model, states)

    def score(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """Score each `(given, scored)` row after this prefix; `given` holds at least one id."""
        caches = [_Layer(state) for state in self._states]
        return score_rows(lambda ids: self._model(ids, cache=caches), rows)


def can_share(model: nn.Module) -> bool:
    """Whether every layer keeps plain keys and values (no recurrent or compressed state)."""
    make_cache: Callable[[], list[Any]] | None = getattr(model, "make_cache", None)
    plain = {"KVCache", "RotatingKVCache"}
    return make_cache is None or all(type(layer).__name__ in plain for layer in make_cache())


def shares_prompts(model: nn.Module) -> bool:
    """Whether `response_logps` may share prompts: tried on two short rows, not guessed.

    Some models take no mask of their own per row, or do not keep plain keys and values.
    """
    if not can_share(model):
        return False
    prefixes, lengths = mx.array([[3, 4, 5], [6, 0, 0]]), mx.array([3, 1])
    inputs = mx.array([[7, 8], [9, 10], [11, 12], [13, 14]])
    try:
        shared, plain = (
            response_logps(model, prefixes, lengths, inputs, inputs, share=share)
            for share in (True, False)
        )
        return bool(mx.allclose(shared, plain, rtol=2e-2, atol=2e-2).item())
    except (ValueError, TypeError, AttributeError, IndexError):
        return False


def can_pack(model: nn.Module) -> bool:
    """Whether `segment_cache` keeps packed rows apart: tried on short rows, not guessed."""
    if not can_share(model):
        return False
    rows = mx.array([[3, 4, 5, 6, 7, 8]] * 2)
    segments = mx.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    try:
        packed = model(rows, cache=segment_cache(model, segments))
        halves = mx.concatenate([model(rows[:1, :3]), model(rows[:1, 3:])], axis=1)
        alone = mx.concatenate([halves, model(rows[1:])])
        return bool(mx.allclose(packed, alone, rtol=2e-2, atol=2e-2).item())
    except (ValueError, TypeError, AttributeError, IndexError):
        return False


def score_rows(
    forward: Callable[[mx.array], mx.array], rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
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
    mx.eval(logps)
    result = []
    for row, (given, scored) in enumerate(rows):
        span = slice(len(given) - 1, len(given) + len(scored) - 1)
        values = cast(list[float], logps[row, span].tolist())
        result.append(math.fsum(values))
    return result
