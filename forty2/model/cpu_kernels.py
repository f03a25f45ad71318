"""What mlx computes slowly on an x86 CPU, computed faster there; elsewhere mlx's own.

mlx's fp32 `exp` calls a library function for each fused multiply-add on x86-64: 11.5 ns an element
where a matrix product has done 1,200 operations. `power` goes to powf and takes 4.3. Its attention
scores the keys that a causal mask hides, and wants keys that many rows share copied for each. So, on
Linux on x86-64, mlx-lm's models are given the attention and the gated activation of this module,
which on a GPU are mlx's again. The numbers are the same to rounding, gradients included.

Axes: B sequences, H query heads, K key heads, L queries, S keys, D head size.
"""

from __future__ import annotations

import math
import platform
import sys
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np
from mlx_lm.models import activations

from forty2.machine import on_gpu

QUERIES = 64
"""Queries that attend together: fewer score fewer hidden keys, and make more work for Python."""

HERE = sys.platform == "linux" and platform.machine() == "x86_64"
"""Whether mlx's CPU is slow at this."""
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


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """silu(gate) · x, as mlx-lm's."""
    product: mx.array = (
        gate * cast(mx.array, _sigmoid(gate)) * x if _slow(gate) else _swiglu(gate, x)
    )
    return product


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    **others: Any,
) -> mx.array:
    """Softmax attention, as `mx.fast.scaled_dot_product_attention`.

    Args:
        queries: (B, H, L, D)
        keys: (B, K, S, D), each for H / K query heads
        values: as the keys
        mask: "causal" is aligned to the last query; booleans or summands (B or 1, H or 1, L, S).

    Returns:
        (B, H, L, D)
    """
    global _last
    last, _last = _last, None
    length, total = queries.shape[2], keys.shape[2]
    if not _slow(queries) or any(v is not None for v in others.values()):
        return _attention(queries, keys, values, scale=scale, mask=mask, **others)
    alike = not isinstance(mask, mx.array) or (mask.dtype == mx.bool_ and mask.shape[1] == 1)
    if alike and last is not None and last.whole[0] is keys and last.whole[1] is values:
        return _attended_in_parts(queries, last, scale, mask)
    if length == 1:
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
    rows, heads, length = queries.shape[:3]
    few, total = keys.shape[1:3]

    def grouped(array: mx.array) -> mx.array:
        """One product's rows: the queries that share a key head."""
        return array.reshape(rows, few, -1, array.shape[-1])

    @mx.custom_function
    def attended(
        queries: mx.array, keys: mx.array, values: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        scores = grouped(queries * scale) @ keys.swapaxes(-1, -2)
        scores = scores.reshape(rows, heads, length, total)
        if mask is not None:
            hidden = mx.array(mx.finfo(scores.dtype).min)
            scores = mx.where(mask, scores, hidden) if mask.dtype == mx.bool_ else scores + mask
        powers = exp(scores - scores.max(axis=-1, keepdims=True))
        sums = powers.sum(axis=-1, keepdims=True)
        output = (grouped(powers) @ values).reshape(rows, heads, length, -1) / sums
        return output, powers, sums

    # Softmax's own gradient, its division and its sum done on the few columns of the output
    # (Dao et al. 2022, "FlashAttention", appendix B.2).
    @attended.vjp
    def pulled(primals: Any, cotangents: Any, outputs: Any) -> Any:
        (queries, keys, values), (output, powers, sums) = primals, outputs
        pull = cotangents[0] / sums
        shared = (pull * output).sum(axis=-1, keepdims=True)
        weights, pull = grouped(powers), grouped(pull)
        slopes = weights * (pull @ values.swapaxes(-1, -2) - grouped(shared))
        return (
            (slopes @ keys).reshape(queries.shape) * scale,
            slopes.swapaxes(-1, -2) @ grouped(queries * scale),
            weights.swapaxes(-1, -2) @ pull,
        )

    output: mx.array = attended(queries, keys, values)[0]  # type: ignore[index]
    return output


class _Joined(NamedTuple):
    """Keys and values, whole and in parts."""

    whole: tuple[mx.array, mx.array]
    front: tuple[mx.array, mx.array]
    own: tuple[mx.array, mx.array]


_last: _Joined | None = None


def joined(
    front: tuple[mx.array, mx.array], own: tuple[mx.array, mx.array]
) -> tuple[mx.array, mx.array]:
    """A front's keys and values (1, K, C, D) before each row's own (B, K, S, D): (B, K, C + S, D).

    On an x86 CPU no gradient passes, and the front is not copied for each row: mlx computes only
    what is asked for, and `attention`, given the very arrays that came from here last, asks for the
    parts instead.
    """
    global _last
    rows = own[0].shape[0]
    keys, values = (
        mx.concatenate([mx.broadcast_to(first, (rows, *first.shape[1:])), after], axis=2)
        for first, after in zip(front, own, strict=True)
    )
    _last = _Joined((keys, values), front, own) if _slow(keys) else None
    return keys, values


def _attended_in_parts(
    queries: mx.array, parts: _Joined, scale: float, mask: mx.array | str | None
) -> mx.array:
    """Attention to what was joined: the queries of all rows meet the front in one product."""
    (first_keys, first_values), own = parts.front, [part.swapaxes(0, 1) for part in parts.own]
    rows, heads, length, size = queries.shape
    few, first, total = first_keys.shape[1], first_keys.shape[2], own[0].shape[2]
    asking = (queries * scale).reshape(rows, few, heads // few, length, size).swapaxes(0, 1)
    outputs = []
    for start in range(0, length, QUERIES):
        stop = min(start + QUERIES, length)
        seen, hidden = total, None
        if mask == "causal":
            seen = total - length + stop
            last_seen = np.arange(first + seen - stop + start, first + seen)
            hidden = np.arange(first + seen) > last_seen[:, None]
        elif isinstance(mask, mx.array):
            hidden = ~np.array(mask[:, :, start:stop])[None]
        block = mx.contiguous(asking[:, :, :, start:stop])
        keys, values = (part[:, :, :seen] for part in own)
        far = block.reshape(few, -1, size) @ first_keys[0].swapaxes(-1, -2)
        near = block.reshape(few, rows, -1, size) @ keys.swapaxes(-1, -2)
        shape = block.shape[:-1]
        sums = _exp_in_place(far, near, shape, hidden)
        output = (far @ first_values[0]).reshape(*shape, -1) + (near @ values).reshape(*shape, -1)
        outputs.append(output / sums)
    return mx.concatenate(outputs, axis=3).swapaxes(0, 1).reshape(rows, heads, length, -1)


def _exp_in_place(
    far: mx.array, near: mx.array, shape: tuple[int, ...], hidden: np.ndarray[Any, Any] | None
) -> mx.array:
    """Scores become e to the score less its query's highest; returns their sums (*shape, 1).

    By numpy, whose exp takes 0.5 ns an element: nothing here is differentiated.

    Args:
        far: scores of the front's keys, near those of the rows' own; each `shape` and its keys.
        shape: (K, B, H / K, L)
        hidden: which keys are, far and near side by side; broadcast.
    """
    scores = [np.array(part, copy=False).reshape(*shape, -1) for part in (far, near)]
    if hidden is not None:
        first = scores[0].shape[-1]
        for part, off in zip(scores, (hidden[..., :first], hidden[..., first:]), strict=True):
            if off.any():
                np.copyto(part, np.finfo(np.float32).min / 2, where=off)
    top = np.maximum(*(part.max(axis=-1, keepdims=True) for part in scores))
    for part in scores:
        part -= top
        np.exp(part, out=part)
    return mx.array(sum(part.sum(axis=-1, keepdims=True) for part in scores))


def _slow(x: mx.array) -> bool:
    return HERE and x.dtype == mx.float32 and not on_gpu()


def install() -> None:
    """Where mlx is slow, give mlx-lm's models these functions, those imported and those to come."""
    if not HERE:
        return
    mx.fast.scaled_dot_product_attention = attention  # type: ignore[assignment]
    for name, module in list(sys.modules.items()):
        if name.startswith("mlx_lm.models.") and getattr(module, "swiglu", None) is _swiglu:
            module.swiglu = swiglu  # type: ignore[attr-defined]
