"""What is computed faster on an x86 CPU is what mlx computes, gradients included."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import tiny_model

from forty2.machine import on_gpu
from forty2.model import cpu_kernels, surgery

here = pytest.mark.skipif(
    not cpu_kernels.HERE or on_gpu(), reason="elsewhere mlx's own functions are used"
)


def pulled(function: Callable[..., mx.array], inputs: list[mx.array]) -> list[np.ndarray[Any, Any]]:
    """The output, and the gradient of each input, of a weighted sum of the outputs."""
    shape = function(*inputs).shape
    weights = mx.random.normal(shape, key=mx.random.key(9))
    outputs, gradients = mx.vjp(function, inputs, [weights])
    return [np.asarray(array) for array in (*outputs, *gradients)]


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


@here
@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(1, 1), (2, 1), (9, 3), (4, 2)]),
    st.integers(2, 150),
    st.integers(0, 40),
    st.sampled_from(["causal", "none", "booleans", "summands"]),
    st.integers(0, 99),
)
def test_attention_is_mlx_s(
    heads: tuple[int, int], length: int, before: int, kind: str, seed: int
) -> None:
    rows, size, total = 2, 8, length + before
    inputs = [normal(rows, heads[0], length, size, seed=seed)]
    inputs += [normal(rows, heads[1], total, size, seed=seed + n) for n in (1, 2)]
    mask: Any = {"causal": "causal", "none": None}.get(kind)
    if kind == "booleans":  # the last key is always seen, so no query is left without any
        mask = (normal(rows, 1, length, total, seed=seed) > 0) | (mx.arange(total) == total - 1)
    if kind == "summands":
        mask = normal(rows, heads[0], length, total, seed=seed)
    plain, ours = (
        pulled(lambda q, k, v, f=f: f(q, k, v, scale=0.3, mask=mask), inputs)
        for f in (cpu_kernels._attention, cpu_kernels.attention)
    )
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


@here
@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(1, 1), (2, 1), (9, 3), (4, 2)]),
    st.integers(1, 150),
    st.integers(0, 20),
    st.integers(1, 40),
    st.sampled_from(["causal", "none", "booleans"]),
    st.integers(0, 99),
)
def test_attention_to_a_front_that_rows_share_is_mlx_s_to_copies(
    heads: tuple[int, int], length: int, between: int, front: int, kind: str, seed: int
) -> None:
    rows, size, own = 3, 8, length + between
    queries = normal(rows, heads[0], length, size, seed=seed) * 3
    first, after = (
        (
            normal(n, heads[1], width, size, seed=seed + 1),
            normal(n, heads[1], width, 5, seed=seed + 2),
        )
        for n, width in ((1, front), (rows, own))
    )
    mask: Any = {"causal": "causal", "none": None}.get(kind)
    if kind == "booleans":
        last = mx.arange(front + own) == front + own - 1
        mask = (normal(rows, 1, length, front + own, seed=seed) > 0) | last
    whole = cpu_kernels.joined(first, after)
    ours = cpu_kernels.attention(queries, *whole, scale=0.3, mask=mask)
    plain = cpu_kernels._attention(queries, *whole, scale=0.3, mask=mask)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(plain), rtol=1e-5, atol=1e-5)


@here
def test_a_front_is_never_copied_for_its_rows() -> None:
    rows, front, size = 64, 4096, 64
    first = (normal(1, 1, front, size), normal(1, 1, front, size, seed=1))
    after = (normal(rows, 1, 2, size, seed=2), normal(rows, 1, 2, size, seed=3))
    queries = normal(rows, 1, 2, size, seed=4)
    mx.eval(first, after, queries)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(
        cpu_kernels.attention(queries, *cpu_kernels.joined(first, after), scale=0.1, mask="causal")
    )
    assert mx.get_peak_memory() - before < rows * front * size * 4


@here
def test_the_gated_activation_is_mlx_lm_s_far_out_too() -> None:
    inputs = [
        mx.array([-200.0, -90.0, -20.0, -1.0, 0.0, 1e-6, 1.0, 20.0, 200.0]),
        mx.arange(9) + 1.0,
    ]
    plain, ours = (pulled(f, inputs) for f in (cpu_kernels._swiglu, cpu_kernels.swiglu))
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=3e-6, atol=1e-7)


def test_exp_is_right_to_what_it_says() -> None:
    x = np.linspace(-87, 87, 20_001, dtype=np.float32)
    ours, exact = np.asarray(cpu_kernels.exp(mx.array(x))), np.exp(x.astype(np.float64))
    assert (np.abs(ours / exact - 1) <= 1.5e-7 + 3.1e-8 * np.abs(x)).all()
    ends = np.asarray(cpu_kernels.exp(mx.array([-np.inf, np.inf, np.nan])))
    assert ends[0] == 0 and ends[1] == np.inf and np.isnan(ends[2])


def test_logsumexp_of_large_and_of_masked_values() -> None:
    x = np.array([[1000.0, 999.0, -np.inf], [-1000.0, -1001.0, -1000.0]], np.float32)
    exact = x.max(axis=1) + np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1))
    np.testing.assert_allclose(np.asarray(cpu_kernels.logsumexp(mx.array(x))), exact, rtol=1e-6)


@here
def test_models_are_given_them_whenever_they_were_imported() -> None:
    model = tiny_model("llama")
    assert sys.modules[type(model).__module__].swiglu is cpu_kernels.swiglu
    assert vars(mx.fast)["scaled_dot_product_attention"] is cpu_kernels.attention
    assert surgery.can_split(model)


@here
def test_other_precisions_go_to_mlx() -> None:
    half = [normal(1, 2, 5, 8, seed=n).astype(mx.bfloat16) for n in range(3)]
    plain = cpu_kernels._attention(*half, scale=0.3, mask="causal")
    assert mx.array_equal(cpu_kernels.attention(*half, scale=0.3, mask="causal"), plain)
