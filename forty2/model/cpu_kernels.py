"""Faster versions of what mlx computes slowly on an x86 CPU; elsewhere mlx's own functions.

On x86-64, mlx's fp32 `exp` calls a library function for each fused multiply-add. It takes 11.5 ns
an element, the time of 1,200 operations of a matrix product; `power` calls powf and takes 4.3 ns.
mlx's attention also scores the keys that a causal mask hides, and needs a copy for each row of keys
that many rows share. So on Linux on x86-64, `install` gives mlx-lm's models the attention and the
gated activation of this module, which call mlx's for other precisions and on a GPU. The numbers are
the same to rounding, gradients included.

Loading a model installs them. The environment variable FORTY2_CPU_KERNELS=0 keeps mlx's.

Axes: B sequences, H query heads, K key heads, L queries, S keys, C common keys, D head size.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx_lm.models import activations

from forty2.machine import on_gpu

QUERIES = 64
"""Queries computed together: with fewer, fewer hidden keys are scored, but Python takes longer."""
SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"
"""Whether mlx's CPU functions are slow on this machine."""
SWITCH = "FORTY2_CPU_KERNELS"
"""Environment variable; 0 keeps mlx's functions."""

_E = mx.array(math.e)
_mlx_attention = mx.fast.scaled_dot_product_attention
_mlx_swiglu = activations.swiglu
_installed = False


def install() -> None:
    """Give mlx-lm's models these functions, including models imported later.

    Do nothing where mlx is not slow or the user has switched them off.
    """
    global _installed
    if not SUPPORTED or os.environ.get(SWITCH) == "0":
        return
    _installed = True
    mx.fast.scaled_dot_product_attention = attention  # type: ignore[assignment]
    _replace_in_models(_mlx_swiglu, swiglu)


def uninstall() -> None:
    """Give mlx and mlx-lm's models back their own functions."""
    global _installed, _last_joined
    _installed, _last_joined = False, None
    mx.fast.scaled_dot_product_attention = _mlx_attention
    _replace_in_models(swiglu, _mlx_swiglu)


def _replace_in_models(old: object, new: object) -> None:
    """Replace the gated activation in every imported module of mlx-lm's models.

    One of these modules is `activations`, from which modules imported later take it.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.models.") and getattr(module, "swiglu", None) is old:
            module.swiglu = new  # type: ignore[attr-defined]


def exp(x: mx.array) -> mx.array:
    """Compute e to the power x; relative error |x| · 3e-8 on an x86 CPU."""
    return mx.power(_E, x) if _is_slow(x) else mx.exp(x)


def logsumexp(x: mx.array) -> mx.array:
    """Compute log Σ exp over the last axis."""
    if not _is_slow(x):
        return mx.logsumexp(x, axis=-1)
    top = mx.stop_gradient(x.max(axis=-1, keepdims=True))
    return mx.log(exp(x - top).sum(axis=-1)) + top.squeeze(-1)


@mx.custom_function
def _sigmoid(x: mx.array) -> mx.array:
    return mx.reciprocal(1 + exp(-x))


@_sigmoid.vjp
def _sigmoid_backward(_: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output * (1 - output)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """Compute silu(gate) · x, as mlx-lm's `swiglu`."""
    if not _is_slow(gate):
        plain: mx.array = _mlx_swiglu(gate, x)
        return plain
    sigmoid: mx.array = _sigmoid(gate)  # type: ignore[assignment]
    return gate * sigmoid * x


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    **options: object,
) -> mx.array:
    """Compute softmax attention, as `mx.fast.scaled_dot_product_attention`.

    Args:
        queries: (B, H, L, D)
        keys: (B, K, S, D), each for H / K query heads.
        values: as the keys.
        mask: "causal" is aligned to the last query; booleans, or numbers added to the scores
            (B or 1, H or 1, L, S).
        options: other options of mlx; if any is given, mlx's own function is called.

    Returns:
        (B, H, L, D)
    """
    global _last_joined
    joined, _last_joined = _last_joined, None
    length, total = queries.shape[2], keys.shape[2]
    if not _is_slow(queries) or any(value is not None for value in options.values()):
        return _mlx_attention(queries, keys, values, scale=scale, mask=mask, **options)  # type: ignore[arg-type]
    by_row = not isinstance(mask, mx.array) or (mask.dtype == mx.bool_ and mask.shape[1] == 1)
    if by_row and joined is not None and joined.keys is keys and joined.values is values:
        return _attend_in_parts(queries, joined, scale, mask)
    if length == 1:
        return _mlx_attention(queries, keys, values, scale=scale, mask=mask)
    if not isinstance(mask, str):
        return _attend(queries, keys, values, scale, mask)
    parts = []
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        visible = total - length + stop
        causal = mx.arange(visible) <= mx.arange(visible - stop + start, visible)[:, None]
        parts.append(
            _attend(
                queries[:, :, start:stop],
                keys[:, :, :visible],
                values[:, :, :visible],
                scale,
                causal,
            )
        )
    return mx.concatenate(parts, axis=2)


def _attend(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    """Compute attention with all scores at once and a gradient written by hand."""
    rows, heads, length = queries.shape[:3]
    key_heads, total = keys.shape[1:3]

    def by_key_head(array: mx.array) -> mx.array:
        """Stack the queries that share a key head, as rows of one product."""
        return array.reshape(rows, key_heads, -1, array.shape[-1])

    @mx.custom_function
    def attend(
        queries: mx.array, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        scores = by_key_head(queries * scale) @ keys.swapaxes(-1, -2)
        scores = scores.reshape(rows, heads, length, total)
        if mask is not None:
            hidden = mx.array(mx.finfo(scores.dtype).min)
            scores = mx.where(mask, scores, hidden) if mask.dtype == mx.bool_ else scores + mask
        powers = exp(scores - scores.max(axis=-1, keepdims=True))
        sums = powers.sum(axis=-1, keepdims=True)
        output = (by_key_head(powers) @ values).reshape(rows, heads, length, -1) / sums
        return output, powers, sums

    # Softmax's gradient, with its division and its sum moved to the few columns of the output
    # (Dao et al. 2022, "FlashAttention", appendix B.2).
    @attend.vjp
    def backward(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> tuple[mx.array, mx.array, mx.array]:
        (queries, keys, values), (output, powers, sums) = primals, outputs
        cotangent = cotangents[0] / sums
        common = (cotangent * output).sum(axis=-1, keepdims=True)
        weights, cotangent = by_key_head(powers), by_key_head(cotangent)
        gradients = weights * (cotangent @ values.swapaxes(-1, -2) - by_key_head(common))
        return (
            (gradients @ keys).reshape(queries.shape) * scale,
            gradients.swapaxes(-1, -2) @ by_key_head(queries * scale),
            weights.swapaxes(-1, -2) @ cotangent,
        )

    output: mx.array = attend(queries, keys, values)[0]  # type: ignore[index]
    return output


class _Joined(NamedTuple):
    """Keys and values that `join` returned, and the parts they were made of."""

    keys: mx.array
    values: mx.array
    common: tuple[mx.array, mx.array]
    own: tuple[mx.array, mx.array]


_last_joined: _Joined | None = None


def join(
    common: tuple[mx.array, mx.array], own: tuple[mx.array, mx.array]
) -> tuple[mx.array, mx.array]:
    """Put the keys and values that all rows share before each row's own.

    On an x86 CPU no gradient passes, and the common part is not copied for each row: mlx computes
    an array only when it is needed, and `attention`, given the very arrays that this function
    returned last, uses the parts instead.

    Args:
        common: (1, K, C, D) each.
        own: (B, K, S, D) each.

    Returns:
        (B, K, C + S, D) each.
    """
    global _last_joined
    rows = own[0].shape[0]
    keys, values = (
        mx.concatenate([mx.broadcast_to(first, (rows, *first.shape[1:])), after], axis=2)
        for first, after in zip(common, own, strict=True)
    )
    _last_joined = _Joined(keys, values, common, own) if _is_slow(keys) else None
    return keys, values


def _attend_in_parts(
    queries: mx.array, joined: _Joined, scale: float, mask: mx.array | str | None
) -> mx.array:
    """Compute attention to joined keys, with one product of all rows' queries and the common keys."""
    common_keys, common_values = joined.common
    own = [part.swapaxes(0, 1) for part in joined.own]
    rows, heads, length, size = queries.shape
    key_heads, common, total = common_keys.shape[1], common_keys.shape[2], own[0].shape[2]
    scaled = (queries * scale).reshape(rows, key_heads, heads // key_heads, length, size)
    scaled = scaled.swapaxes(0, 1)
    outputs = []
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        visible, hidden = total, None
        if mask == "causal":
            visible = total - length + stop
            last = np.arange(common + visible - stop + start, common + visible)
            hidden = np.arange(common + visible) > last[:, None]
        elif isinstance(mask, mx.array):
            hidden = ~np.array(mask[:, :, start:stop])[None]
        block = mx.contiguous(scaled[:, :, :, start:stop])
        keys, values = (part[:, :, :visible] for part in own)
        common_scores = block.reshape(key_heads, -1, size) @ common_keys[0].swapaxes(-1, -2)
        own_scores = block.reshape(key_heads, rows, -1, size) @ keys.swapaxes(-1, -2)
        shape = block.shape[:-1]
        sums = _exp_in_place(common_scores, own_scores, shape, hidden)
        output = (common_scores @ common_values[0]).reshape(*shape, -1)
        output = output + (own_scores @ values).reshape(*shape, -1)
        outputs.append(output / sums)
    return mx.concatenate(outputs, axis=3).swapaxes(0, 1).reshape(rows, heads, length, -1)


def _exp_in_place(
    common: mx.array, own: mx.array, shape: tuple[int, ...], hidden: npt.NDArray[np.bool_] | None
) -> mx.array:
    """Replace each score by e to the power of the score minus its query's highest, in place.

    Computed by numpy, whose exp takes 0.5 ns an element, because nothing here is differentiated.

    Args:
        common: scores of the common keys, in any shape that can become (*shape, C).
        own: scores of each row's own keys, in any shape that can become (*shape, S).
        shape: (K, B, H / K, L)
        hidden: true for masked keys, common ones first; broadcast to (*shape, C + S).

    Returns:
        The sums over all keys, (*shape, 1).
    """
    scores = [np.array(part, copy=False).reshape(*shape, -1) for part in (common, own)]
    if hidden is not None:
        first = scores[0].shape[-1]
        for part, masked in zip(scores, (hidden[..., :first], hidden[..., first:]), strict=True):
            if masked.any():
                np.copyto(part, np.finfo(np.float32).min / 2, where=masked)
    top = np.maximum(*(part.max(axis=-1, keepdims=True) for part in scores))
    for part in scores:
        part -= top
        np.exp(part, out=part)
    return mx.array(sum(part.sum(axis=-1, keepdims=True) for part in scores))


def _is_slow(x: mx.array) -> bool:
    """Return whether these functions are installed and mlx's are slow on this array."""
    return _installed and x.dtype == mx.float32 and not on_gpu()
