"""What mlx computes slowly on an x86 CPU, computed faster there; elsewhere mlx's own.

mlx's fp32 `exp` calls a library function for each fused multiply-add on x86-64: 11.5 ns an element
where a matrix product has done 1,200 operations. `power` goes to powf and takes 4.3. And its
attention scores the keys that a causal mask hides. So, when a model is run there, mlx-lm's models
are given the attention and the gated activation of this module. The numbers are the same to
rounding, gradients included.

Axes: B sequences, H query heads, K key heads, L queries, S keys, D head size.
"""

from __future__ import annotations

import math
import platform
import sys
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models import activations

from forty2.platform import on_gpu

QUERIES = 64
"""Queries that attend together: fewer score fewer hidden keys, and make more work for Python."""

_E = mx.array(math.e)
_attention = mx.fast.scaled_dot_product_attention
_swiglu = activations.swiglu


def exp(x: mx.array) -> mx.array:
    """e to the x; relative error |x| · 3e-8 on an x86 CPU."""
    return mx.power(_E, x) if _slow(x) else mx.exp(x)


def logsumexp(x: mx.array) -> mx.array:
    """log Σ exp over the last axis."""
    if not _slow(x):
        return mx.logsumexp(x, axis=-1)
    top = mx.stop_gradient(x.max(axis=-1, keepdims=True))
    return mx.log(exp(x - top).sum(axis=-1)) + top.squeeze(-1)


@mx.custom_function
def _sigmoid(x: mx.array) -> mx.array:
    return mx.reciprocal(1 + exp(-x))


@_sigmoid.vjp
def _sigmoid_pulled(_: Any, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output * (1 - output)


@mx.custom_function
def _softmax(x: mx.array) -> mx.array:
    powers = exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@_softmax.vjp
def _softmax_pulled(_: Any, cotangent: mx.array, output: mx.array) -> mx.array:
    weighed = cotangent * output
    return weighed - output * weighed.sum(axis=-1, keepdims=True)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) · x, as mlx-lm's."""
    product: mx.array = (
        gate * cast(mx.array, _sigmoid(gate)) * x if _slow(gate) else _swiglu(gate, x)
    )
    return product


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, *,
    scale: float, mask: mx.array | str | None = None, **others: Any,
) -> mx.array:  # fmt: skip
    """Softmax attention, as `mx.fast.scaled_dot_product_attention`.

    Args:
        queries: (B, H, L, D)
        keys: (B, K, S, D), each for H / K query heads
        values: as the keys
        mask: "causal" is aligned to the last query; booleans or summands (B or 1, H or 1, L, S).

    Returns:
        (B, H, L, D)
    """
    length, total = queries.shape[2], keys.shape[2]
    if length == 1 or not _slow(queries) or any(v is not None for v in others.values()):
        return _attention(queries, keys, values, scale=scale, mask=mask, **others)
    if not isinstance(mask, str):
        return _attended(queries, keys, values, scale, mask)
    parts = []
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        seen = total - length + stop
        upto = mx.arange(seen) <= mx.arange(seen - stop + start, seen)[:, None]
        parts.append(
            _attended(
                queries[:, :, start:stop], keys[:, :, :seen], values[:, :, :seen], scale, upto
            )
        )
    return mx.concatenate(parts, axis=2)


def _attended(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    rows, heads, length, size = queries.shape
    few = keys.shape[1]
    # A key head's queries are rows of one product.
    grouped = (queries * scale).reshape(rows, few, -1, size)
    scores = (grouped @ keys.swapaxes(-1, -2)).reshape(rows, heads, length, -1)
    if mask is not None:
        hidden = mx.array(mx.finfo(scores.dtype).min)
        scores = mx.where(mask, scores, hidden) if mask.dtype == mx.bool_ else scores + mask
    weights: Any = _softmax(scores)
    output: mx.array = weights.reshape(rows, few, -1, keys.shape[2]) @ values
    return output.reshape(rows, heads, length, -1)


def _slow(x: mx.array) -> bool:
    return x.dtype == mx.float32 and platform.machine() == "x86_64" and not on_gpu()


def install() -> None:
    """Give mlx-lm's models this module's functions, those imported and those to come."""
    mx.fast.scaled_dot_product_attention = attention  # type: ignore[assignment]
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.models.") and getattr(module, "swiglu", None) is _swiglu:
            module.swiglu = swiglu  # type: ignore[attr-defined]
