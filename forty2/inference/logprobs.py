"""Token and sequence log-probabilities, in fp32 whatever dtype the weights have.

Axes: B sequences, T tokens, V vocabulary, H heads, D head size.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2.machine import on_gpu
from forty2.model import cpu_kernels
from forty2.model.surgery import (
    BlockInput,
    blocks,
    body,
    can_split,
    compute_block_input,
    head,
    sample_ids,
    scores_agree,
)
from forty2.training.batches import PairBatch, grouped, pad, positions, together

HEAD_GPU, HEAD_CPU = 1 << 24, 1 << 22
"""Logits held at once where the backward pass needs them, a few times over. For each such chunk the
head's weights are read anew, which a GPU waits for."""
Scored = tuple[Sequence[int], Sequence[int]]
"""A row of ids: what is given, at least one, and what is scored after it."""
ROW = 256  # one level of the log-sum-exp; two levels of 256 span a 65k vocabulary


def logsumexp(logits: mx.array) -> mx.array:
    """log Σ exp over the last axis, in fp32, in two levels. Shape (..., V) -> (...).

    One fp32 sum over a large vocabulary drifts on the CPU: 1e-4 a token at 49k entries, which a
    500-token answer turns into 0.05. Summing rows of 256 first is right to 6e-7.
    """
    rows = _in_rows(logits.astype(mx.float32), -mx.inf)
    return cpu_kernels.logsumexp(cpu_kernels.logsumexp(rows))


def token_logps(logits: mx.array, targets: mx.array) -> mx.array:
    """log p(target) at each position: logits (B, T, V), targets (B, T) -> (B, T), fp32."""
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    return picked.astype(mx.float32) - logsumexp(logits)


class Shortcuts(NamedTuple):
    """What may be spared in computing a model's log-probabilities; the numbers stay the same."""

    shared_prompts: bool = False
    """A prompt may be computed once for all its responses."""
    split_head: bool = False
    """The head may be given supervised positions alone, the upper blocks stored states."""


NO_SHORTCUTS = Shortcuts()


def supported_shortcuts(model: nn.Module) -> Shortcuts:
    """What this model allows: tried on short rows, not guessed from its name."""
    return Shortcuts(can_share_prompts(model), can_split(model))


def head_elements() -> int:
    """Logits held at once on this machine."""
    return HEAD_GPU if on_gpu() else HEAD_CPU


def supervised_logps(
    model: nn.Module, states: mx.array, targets: mx.array, where: mx.array
) -> mx.array:
    """log p of the targets at some positions, from the body's states: logits exist nowhere else.

    The head works on chunks of positions. A log-probability depends on its own state alone, so its
    slope is computed while the chunk's logits are there, and the backward pass only scales it:
    neither all logits nor their gradient are ever held. The head must be frozen.

    Args:
        states: (B, T, D), of `body`.
        targets: (B, T)
        where: (N,) positions in the flattened (B, T); -1 is padding.

    Returns:
        (N,) fp32, 0 on padding.
    """
    real = where >= 0
    index = mx.maximum(where, 0)
    rows, wanted = states.reshape(-1, states.shape[-1])[index], targets.reshape(-1)[index]
    vocabulary = head(model, rows[:1]).shape[-1]
    chunk = max(1, head_elements() // vocabulary)
    scored = _sloped(model) if model.training else functools.partial(_scored, model)
    result: list[mx.array] = []
    for start in range(0, rows.shape[0], chunk):
        part = rows[start : start + chunk]
        if result:  # one chunk after the other, or their logits would be held at once
            part = mx.depends(part, result[-1])
        result.append(scored(part, wanted[start : start + chunk]))
    return mx.where(real, mx.concatenate(result), 0.0)


def _scored(model: nn.Module, states: mx.array, targets: mx.array) -> mx.array:
    """States (N, D) and targets (N,) to log-probabilities (N,)."""
    return token_logps(head(model, states), targets)


def _sloped(model: nn.Module) -> Callable[[mx.array, mx.array], mx.array]:
    """`_scored`, its slope (N, D) computed at once."""

    @mx.custom_function
    def scored(states: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        states = mx.stop_gradient(states)
        logits = head(model, states)
        shares, log_total = _softmax(logits.astype(mx.float32))
        picked = mx.take_along_axis(logits, targets[:, None], axis=-1).astype(mx.float32)
        chosen = mx.arange(logits.shape[-1])[None] == targets[:, None]
        pull = (mx.where(chosen, 1.0, 0.0) - shares).astype(logits.dtype)
        _, (slopes,) = mx.vjp(functools.partial(head, model), [states], [pull])
        return (picked - log_total).squeeze(-1), slopes

    @scored.vjp
    def pulled(_: Any, cotangents: Any, outputs: Any) -> Any:
        slopes = outputs[1]
        return (cotangents[0][:, None] * slopes).astype(slopes.dtype), mx.zeros(slopes.shape[:1])

    return lambda states, targets: scored(states, targets)[0]  # type: ignore[index]


def _softmax(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Softmax (N, V) and log Σ exp (N, 1) of fp32 logits, with a sum in two levels."""
    top = logits.max(axis=-1, keepdims=True)
    powers = cpu_kernels.exp(logits - top)
    rows = _in_rows(powers, 0.0)
    total = rows.sum(axis=-1).sum(axis=-1, keepdims=True)
    return powers / total, top + mx.log(total)


def _in_rows(values: mx.array, padding: float) -> mx.array:
    """(..., V) -> (..., rows, 256)"""
    missing = -values.shape[-1] % ROW
    if missing:
        widths = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
        values = mx.pad(values, widths, constant_values=padding)
    return values.reshape(*values.shape[:-1], -1, ROW)


class PairArrays(NamedTuple):
    """A batch of B prompts with k responses each; row r of the kB responses is prompt r mod B's."""

    prefixes: mx.array
    """(B, P) prompts without their last token, padded on the right."""
    prefix_lengths: mx.array
    """(B,)"""
    inputs: mx.array
    """(kB, T) last prompt token and response but its last."""
    targets: mx.array
    """(kB, T) response tokens."""
    where: mx.array
    """(N,) positions in the flattened (kB, T) that hold a response; -1 is padding."""


class PairBlockInput(NamedTuple):
    """Stored states to go on from: those of the prefixes (B, P, D) and of the inputs (kB, T, D)."""

    prefixes: mx.array
    inputs: mx.array
    depth: int


def pair_arrays(batch: PairBatch) -> PairArrays:
    """What `response_logps` reads of a batch."""
    return PairArrays(
        mx.array(batch.prefixes),
        mx.array(batch.prefix_lengths),
        mx.array(batch.inputs),
        mx.array(batch.targets),
        mx.array(positions(batch.mask)),
    )


def compute_pair_block_input(model: nn.Module, pairs: PairArrays, depth: int) -> PairBlockInput:
    """The states at the door of block `depth`, prompts computed once."""
    prompts = [CacheLayer() for _ in blocks(model)]
    prefixes = compute_block_input(model, pairs.prefixes, depth, prompts)
    return PairBlockInput(
        prefixes,
        compute_block_input(model, pairs.inputs, depth, _continuation_caches(pairs, prompts)),
        depth,
    )


def _continuation_caches(pairs: PairArrays, prompts: Sequence[CacheLayer]) -> list[CacheLayer]:
    """What responses attend, once their prompts have been run."""
    copies = pairs.inputs.shape[0] // pairs.prefixes.shape[0]
    lengths = mx.concatenate([pairs.prefix_lengths] * copies)
    return [
        CacheLayer(p.keys_and_values(copies), lengths, pairs.prefixes.shape[1]) for p in prompts
    ]


def response_logps(
    model: nn.Module, pairs: PairArrays, shortcuts: Shortcuts, entry: PairBlockInput | None = None
) -> mx.array:
    """log p of each response token; differentiable through the responses and their prompts.

    Shared, a prompt is computed once and its keys and values are attended by all its responses.
    Otherwise whole rows are computed: the same numbers.

    Args:
        entry: for models whose prompts are shared and that come apart.

    Returns:
        (kB, T) fp32, 0 on padding.
    """
    if shortcuts.shared_prompts:
        begin = end = None
        if entry is not None:
            begin, end = (BlockInput(states, entry.depth) for states in entry[:2])
        prompts = [CacheLayer() for _ in blocks(model)]
        run_model(model, pairs.prefixes, shortcuts, cache=prompts, entry=begin)
        output = run_model(
            model, pairs.inputs, shortcuts, cache=_continuation_caches(pairs, prompts), entry=end
        )
    else:
        copies = pairs.inputs.shape[0] // pairs.prefixes.shape[0]
        lengths = mx.concatenate([pairs.prefix_lengths] * copies)
        # Whole rows: column j is the prefix's where it reaches, then the inputs'.
        columns = mx.arange(pairs.prefixes.shape[1] + pairs.inputs.shape[1])[None]
        within = columns - lengths[:, None]
        rows = mx.where(
            within < 0,
            mx.pad(mx.concatenate([pairs.prefixes] * copies), [(0, 0), (0, pairs.inputs.shape[1])]),
            mx.take_along_axis(pairs.inputs, mx.clip(within, 0, pairs.inputs.shape[1] - 1), axis=1),
        )
        positions = lengths[:, None] + mx.arange(pairs.inputs.shape[1])[None]
        output = mx.take_along_axis(run_model(model, rows, shortcuts), positions[..., None], axis=1)
    logps = target_logps(model, output, pairs.targets, pairs.where, shortcuts)
    flat = mx.zeros(pairs.targets.size).at[mx.maximum(pairs.where, 0)].add(logps)
    return flat.reshape(pairs.targets.shape)


def target_logps(
    model: nn.Module, output: mx.array, targets: mx.array, where: mx.array, shortcuts: Shortcuts
) -> mx.array:
    """log p at the positions `where` (N,), 0 where it is -1, from what `run` returned."""
    if shortcuts.split_head:
        return supervised_logps(model, output, targets, where)
    logps = token_logps(output, targets).reshape(-1)
    return mx.where(where >= 0, logps[mx.maximum(where, 0)], 0.0)


def run_model(
    model: nn.Module,
    ids: mx.array,
    shortcuts: Shortcuts,
    *,
    cache: Any = None,
    entry: BlockInput | None = None,
) -> mx.array:
    """What `target_logps` takes: the body's states, or logits where a model does not come apart."""
    return (
        body(model, ids, cache=cache, entry=entry)
        if shortcuts.split_head
        else model(ids, cache=cache)
    )


class CacheLayer:
    """One layer's keys and values, spoken to through the cache protocol of mlx-lm's models.

    Nothing is overwritten, so any number of batches may follow the same prefix, and gradients flow
    through it.
    """

    def __init__(
        self,
        prefix: tuple[mx.array, mx.array] | None = None,
        lengths: mx.array | None = None,
        width: int | None = None,
        rows: mx.array | None = None,
        front: tuple[mx.array, mx.array] | None = None,
    ) -> None:
        """
        Args:
            prefix: keys and values, each (B, H, P, D); None where the block is not run.
            lengths: (B,), how much of each row of the prefix is real; None: all of it.
            width: P, where there is no prefix to tell it.
            rows: (R,), the row of the prefix that each row follows; None: each its own.
            front: keys and values (1, H, C, D) that all rows follow, before the prefix.
        """
        self.prefix = prefix
        self._front = front
        self._rows = rows
        before = 0 if front is None else front[0].shape[2]
        self._width = before + (width or (0 if prefix is None else prefix[0].shape[2]))
        self._lengths = None if lengths is None else before + lengths
        self.offset: int | mx.array = self._width if self._lengths is None else self._lengths
        self.state = prefix

    def with_prefix(self, prefix: tuple[mx.array, mx.array] | None) -> CacheLayer:
        """A fresh layer like this one, with these keys and values before it."""
        layer = copy.copy(self)
        layer.prefix = layer.state = prefix
        return layer

    def keys_and_values(self, copies: int = 1) -> tuple[mx.array, mx.array] | None:
        """Keys and values after a forward pass, the rows repeated as a whole so many times."""
        if self.state is None:
            return None
        keys, values = self.state
        if copies == 1:
            return keys, values
        return mx.concatenate([keys] * copies), mx.concatenate([values] * copies)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self.prefix is not None:
            keys, values = (
                mx.concatenate([old if self._rows is None else old[self._rows], new], axis=2)
                for old, new in zip(self.prefix, (keys, values), strict=True)
            )
        self.state = (keys, values)
        return self.state if self._front is None else cpu_kernels.joined(self._front, self.state)

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
    return [_Segments(segments) for _ in blocks(model)]


class SharedPrefix:
    """A token prefix run through the model once, to be followed by many continuations.

    `prefix.extend(ids)` is a longer prefix; `prefix.score(rows)` scores rows that follow it, and
    `prefix.score_after(stems)` rows that follow one of several longer ones. Any attention model that
    keeps its keys and values through mlx-lm's cache protocol will do; `can_share` tells.
    """

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[tuple[mx.array, mx.array] | None] | None = None,
        allowed: Shortcuts | None = None,
    ) -> None:
        self._model = model
        self._states = states if states is not None else [None] * len(blocks(model))
        self._shortcuts = supported_shortcuts(model) if allowed is None else allowed

    def extend(self, ids: Sequence[int]) -> SharedPrefix:
        """This prefix with `ids` after it."""
        if not ids:
            return self
        layers = [CacheLayer(state) for state in self._states]
        _ = self._model(mx.array([list(ids)]), cache=layers)
        states = [layer.keys_and_values() for layer in layers]
        mx.eval(states)
        return SharedPrefix(self._model, states, self._shortcuts)

    def score(self, rows: Sequence[Scored]) -> list[float]:
        """Score rows after this prefix."""
        return score_rows(
            self._model,
            rows,
            cache=[CacheLayer(front=s) for s in self._states],
            split_head=self._shortcuts.split_head,
        )

    def logits(self, rows: Sequence[Sequence[int]], last: int) -> mx.array:
        """Of each row's last tokens after this prefix, rows of any lengths in one batch.

        Args:
            rows: B of them, at least `last` ids each.

        Returns:
            (B, last, V)
        """
        ends = mx.array([len(row) for row in rows])
        layers = [CacheLayer(front=state) for state in self._states]
        output = run_model(self._model, mx.array(pad(rows)), self._shortcuts, cache=layers)
        where = ends[:, None] - last + mx.arange(last)
        output = mx.take_along_axis(output, where[..., None], axis=1)
        return head(self._model, output) if self._shortcuts.split_head else output

    def score_after(
        self, stems: Sequence[tuple[Sequence[int], Sequence[Scored]]]
    ) -> list[list[float]]:
        """Score rows that follow stems that follow this prefix: all stems run at once.

        Args:
            stems: each its ids, and the rows after them.
        """
        rows = [row for _, after in stems for row in after]
        if not (self._shortcuts.shared_prompts and all(ids for ids, _ in stems)):
            return [self.extend(ids).score(after) for ids, after in stems]
        upto = np.array([len(ids) for ids, _ in stems])
        layers = [CacheLayer(front=state) for state in self._states]
        run_model(
            self._model, mx.array(pad([ids for ids, _ in stems])), self._shortcuts, cache=layers
        )
        states = [layer.keys_and_values() for layer in layers]
        mx.eval(states)
        stem = np.repeat(np.arange(len(stems)), [len(after) for _, after in stems])
        scores = np.zeros(len(rows))
        for group in grouped([len(given) + len(scored) for given, scored in rows], together()):
            which, real = mx.array(stem[group]), mx.array(upto[stem[group]])
            cache = [
                CacheLayer(state, real, rows=which, front=front)
                for state, front in zip(states, self._states, strict=True)
            ]
            some = [rows[n] for n in group]
            scores[group] = score_rows(
                self._model, some, cache=cache, split_head=self._shortcuts.split_head
            )
        ends = np.cumsum([len(after) for _, after in stems])[:-1]
        return [part.tolist() for part in np.split(scores, ends)]


def keeps_plain_keys(model: nn.Module) -> bool:
    """Whether every layer keeps plain keys and values (no recurrent or compressed state)."""
    make_cache: Callable[[], list[Any]] | None = getattr(model, "make_cache", None)
    plain = {"KVCache", "RotatingKVCache"}
    return make_cache is None or all(type(layer).__name__ in plain for layer in make_cache())


def can_share_prompts(model: nn.Module) -> bool:
    """Whether `response_logps` may share prompts: tried on two short rows, not guessed.

    Some models take no mask of their own per row, or do not keep plain keys and values.
    """
    if not keeps_plain_keys(model):
        return False
    ids, lengths = sample_ids(model, 14), mx.array([3, 1])
    prefixes, inputs = ids[:6].reshape(2, 3), ids[6:].reshape(4, 2)
    pairs = PairArrays(prefixes, lengths, inputs, inputs, mx.arange(inputs.size))
    try:
        shared, plain = (
            response_logps(model, pairs, Shortcuts(shared_prompts=s)) for s in (True, False)
        )
        return scores_agree(model, shared, plain)
    except (ValueError, TypeError, AttributeError, IndexError):
        return False


def can_pack(model: nn.Module) -> bool:
    """Whether `segment_cache` keeps packed rows apart: tried on short rows, not guessed."""
    if not keeps_plain_keys(model):
        return False
    rows = mx.concatenate([sample_ids(model, 1, 6)] * 2)
    segments = mx.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    try:
        packed = model(rows, cache=segment_cache(model, segments))
        halves = mx.concatenate([model(rows[:1, :3]), model(rows[:1, 3:])], axis=1)
        alone = mx.concatenate([halves, model(rows[1:])])
        return scores_agree(model, packed, alone)
    except (ValueError, TypeError, AttributeError, IndexError):
        return False


def score_rows(
    model: nn.Module,
    rows: Sequence[Scored],
    *,
    cache: Sequence[Any] | None = None,
    split_head: bool = False,
) -> list[float]:
    """Score rows in one right-padded batch: log-probabilities summed in float64.

    Args:
        cache: of what goes before every row.
        split_head: whether the model `can_split`.
    """
    ids = pad([[*given, *scored] for given, scored in rows])
    width = ids.shape[1] - 1
    where: list[int] = []
    for n, (given, scored) in enumerate(rows):
        first = n * width + len(given) - 1
        where += range(first, first + len(scored))
    inputs, targets = mx.array(ids[:, :-1]), mx.array(ids[:, 1:])
    shortcuts = Shortcuts(split_head=split_head)
    output = run_model(model, inputs, shortcuts, cache=cache)
    logps = target_logps(model, output, targets, mx.array(where), shortcuts)
    for layer in cache or ():
        layer.state = None  # not read again: what each block kept may go as the next one runs
    ends = np.cumsum([len(scored) for _, scored in rows])[:-1]
    return [math.fsum(part.tolist()) for part in np.split(np.asarray(logps), ends)]
