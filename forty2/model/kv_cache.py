"""Keys and values of a model's layers, in the cache protocol of mlx-lm's models.

A model takes one cache entry for each layer. These entries overwrite nothing, so any number of
batches can follow the same prefix, and gradients flow through it.

Axes: B sequences, H key heads, P prefix tokens, S keys, D head size.
"""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from forty2.model import cpu_kernels
from forty2.model.surgery import blocks, sample_ids, scores_agree

KeysAndValues = tuple[mx.array, mx.array]
"""Keys and values of one layer, each (B, H, S, D)."""
_PLAIN = {"KVCache", "RotatingKVCache"}
"""mlx-lm's caches that hold keys and values unchanged."""


class CacheLayer:
    """One layer's keys and values: those of a prefix, then those of the tokens that follow it."""

    def __init__(
        self,
        prefix: KeysAndValues | None = None,
        lengths: mx.array | None = None,
        width: int | None = None,
        rows: mx.array | None = None,
        common: KeysAndValues | None = None,
    ) -> None:
        """Begin with a prefix, or with nothing.

        Args:
            prefix: keys and values, each (B, H, P, D); None: there is no prefix, or this block is
                not run.
            lengths: (B,), number of real tokens of each prefix, the rest being padding on the right;
                None: all.
            width: P, needed if `prefix` is None although there is one.
            rows: (R,), index of the prefix that each row follows; None: row n follows prefix n.
            common: keys and values (1, H, C, D) of tokens before the prefix, shared by all rows.
        """
        self.prefix = prefix
        self._common = common
        self._rows = rows
        before = 0 if common is None else common[0].shape[2]
        self._width = before + (width or (0 if prefix is None else prefix[0].shape[2]))
        self._lengths = None if lengths is None else before + lengths
        self.offset: int | mx.array = self._width if self._lengths is None else self._lengths
        self.state = prefix

    def with_prefix(self, prefix: KeysAndValues | None) -> CacheLayer:
        """Copy this layer, with these keys and values as its prefix."""
        layer = copy.copy(self)
        layer.prefix = layer.state = prefix
        return layer

    def keys_and_values(self, copies: int = 1) -> KeysAndValues | None:
        """Return the keys and values after a forward pass, all rows repeated `copies` times."""
        if self.state is None:
            return None
        keys, values = self.state
        if copies == 1:
            return keys, values
        return mx.concatenate([keys] * copies), mx.concatenate([values] * copies)

    def values_before(self) -> list[mx.array]:
        """Return the values of the tokens that new ones follow, in parts (B or 1, H, some, D)."""
        parts = [] if self._common is None else [self._common[1]]
        if self.prefix is not None:
            own = self.prefix[1]
            parts.append(own if self._rows is None else own[self._rows])
        return parts

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysAndValues:
        """Add the keys and values of new tokens; return all that these may attend to."""
        if self.prefix is not None:
            keys, values = (
                mx.concatenate([old if self._rows is None else old[self._rows], new], axis=2)
                for old, new in zip(self.prefix, (keys, values), strict=True)
            )
        self.state = (keys, values)
        return self.state if self._common is None else cpu_kernels.join(self._common, self.state)

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """Build the attention mask of `length` new tokens.

        Returns:
            (B or 1, 1, length, S), true where attended; or "causal", or None, by mlx-lm's rules.
        """
        total = self._width + length
        windowed = window_size is not None and total > window_size
        if self._lengths is None and not windowed and not return_array:
            return None if length == 1 else "causal"  # "causal" is aligned to the last query
        key = mx.arange(total)
        if self._lengths is None:
            position = key[None]
            real = mx.ones((1, total), mx.bool_)
        else:
            # After a shorter prefix a new key's position is smaller than its column.
            gap = self._width - self._lengths[:, None]
            position = mx.where(key < self._width, key, key - gap)
            real = (key < self._lengths[:, None]) | (key >= self._width)
        query = position[:, None, self._width :, None]
        position, real = position[:, None, None], real[:, None, None]
        mask = (position <= query) & real
        return mask & (position > query - window_size) if window_size is not None else mask


class SegmentLayer:
    """One layer's attention within the segments of packed rows.

    Positions count through the whole row. Attention with rotary positions depends only on their
    differences, so each segment gets the same log-probabilities as on its own.
    """

    offset = 0

    def __init__(self, segments: mx.array) -> None:
        self._segments = segments

    def values_before(self) -> list[mx.array]:
        """Return nothing: no token comes before these."""
        return []

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> KeysAndValues:
        """Return the new tokens' own keys and values: nothing comes before them."""
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """Build the attention mask (B, 1, length, length), true where attended."""
        position = mx.arange(length)
        query, key = position[:, None], position[None]
        mask = key <= query
        if window_size is not None:
            mask = mask & (key > query - window_size)
        return mask[None] & (self._segments[:, :, None] == self._segments[:, None, :])[:, None]


def values_before(cache: Any) -> list[mx.array]:
    """Return the values that a layer's cache holds, in parts (B or 1, H, some, D), first tokens first.

    Args:
        cache: `CacheLayer`, `SegmentLayer`, or one of mlx-lm's caches of keys and values.
    """
    if isinstance(cache, (CacheLayer, SegmentLayer)):
        return cache.values_before()
    return [] if cache.empty() else [cache.keys_and_values()[1]]


def segment_cache(model: nn.Module, segments: mx.array) -> list[SegmentLayer]:
    """Make the cache that keeps rows packed into one sequence from attending to each other.

    Args:
        segments: (B, T), for each token the number of its row.
    """
    return [SegmentLayer(segments) for _ in blocks(model)]


def keeps_plain_keys(model: nn.Module) -> bool:
    """Return whether every layer caches plain keys and values, not a recurrent or compressed state."""
    if not hasattr(model, "make_cache"):
        return True
    return all(type(layer).__name__ in _PLAIN for layer in model.make_cache())


def can_pack(model: nn.Module) -> bool:
    """Return whether `segment_cache` works with this model: tried on short rows, not guessed."""
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
