"""The CPU kernels compute what mlx computes, gradients included, and only loading installs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import activations
from support.models import save_tiny, tiny_model

from forty2.machine import on_gpu
from forty2.model import cpu_kernels
from forty2.model.loading import load

here = pytest.mark.skipif(
    not cpu_kernels.SUPPORTED or on_gpu(), reason="elsewhere mlx's own functions are used"
)


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    cpu_kernels.install()


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
def test_attention_is_that_of_mlx(
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
        for f in (cpu_kernels._mlx_attention, cpu_kernels.attention)
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
def test_attention_to_a_shared_prefix_is_that_of_mlx_to_copies(
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
    whole = cpu_kernels.join(first, after)
    ours = cpu_kernels.attention(queries, *whole, scale=0.3, mask=mask)
    plain = cpu_kernels._mlx_attention(queries, *whole, scale=0.3, mask=mask)
    np.testing.assert_allclose(np.asarray(ours), np.asarray(plain), rtol=1e-5, atol=1e-5)


@here
def test_a_shared_prefix_is_never_copied_for_its_rows() -> None:
    rows, front, size = 64, 4096, 64
    first = (normal(1, 1, front, size), normal(1, 1, front, size, seed=1))
    after = (normal(rows, 1, 2, size, seed=2), normal(rows, 1, 2, size, seed=3))
    queries = normal(rows, 1, 2, size, seed=4)
    mx.eval(first, after, queries)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(
        cpu_kernels.attention(queries, *cpu_kernels.join(first, after), scale=0.1, mask="causal")
    )
    assert mx.get_peak_memory() - before < rows * front * size * 4


@here
def test_the_gated_activation_is_that_of_mlx_lm_for_large_inputs_too() -> None:
    inputs = [
        mx.array([-200.0, -90.0, -20.0, -1.0, 0.0, 1e-6, 1.0, 20.0, 200.0]),
        mx.arange(9) + 1.0,
    ]
    plain, ours = (pulled(f, inputs) for f in (cpu_kernels._mlx_swiglu, cpu_kernels.swiglu))
    for a, b in zip(plain, ours, strict=True):
        np.testing.assert_allclose(b, a, rtol=3e-6, atol=1e-7)


def test_exp_is_within_its_stated_error() -> None:
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
def test_other_precisions_are_left_to_mlx() -> None:
    half = [normal(1, 2, 5, 8, seed=n).astype(mx.bfloat16) for n in range(3)]
    plain = cpu_kernels._mlx_attention(*half, scale=0.3, mask="causal")
    assert mx.array_equal(cpu_kernels.attention(*half, scale=0.3, mask="causal"), plain)


# --- installing -----------------------------------------------------------------------------------

IMPORT_ALL = """
import forty2, importlib, pkgutil
import mlx.core as mx
from mlx_lm.models import activations
places = [mx, mx.fast, mx.random, mx.linalg, activations]
before = [dict(vars(place)) for place in places]
for module in pkgutil.walk_packages(forty2.__path__, "forty2."):
    if not module.name.startswith("forty2.speed.workers.") and "__main__" not in module.name:
        importlib.import_module(module.name)
for place, functions in zip(places, before):
    changed = [name for name, value in functions.items() if vars(place)[name] is not value]
    assert not changed, (place.__name__, changed)
"""


@pytest.fixture
def reinstalled() -> Iterator[None]:
    """Leave the kernels installed for the tests that follow."""
    yield
    cpu_kernels.install()


def are_installed(model: Any) -> bool:
    """Whether mlx and a model have the kernels; both have them, or neither."""
    found = {
        vars(mx.fast)["scaled_dot_product_attention"] is cpu_kernels.attention,
        activations.swiglu is cpu_kernels.swiglu,
        sys.modules[type(model).__module__].swiglu is cpu_kernels.swiglu,
    }
    assert len(found) == 1
    return found.pop()


def test_importing_every_module_leaves_mlx_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@here
@pytest.mark.usefixtures("reinstalled")
def test_loading_a_model_installs_them_unless_they_are_switched_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_tiny(tmp_path / "tiny"))
    cpu_kernels.uninstall()
    monkeypatch.setenv("FORTY2_CPU_KERNELS", "0")
    assert not are_installed(load(folder).model)
    monkeypatch.delenv("FORTY2_CPU_KERNELS")
    assert are_installed(load(folder).model)


@here
@pytest.mark.usefixtures("reinstalled")
def test_a_models_logits_and_gradients_are_the_same_without_them() -> None:
    model = tiny_model()
    ids = mx.array([[5, 7, 200, 31, 9, 120, 64, 3]])
    weight = model.model.layers[0].self_attn.o_proj.weight

    def loss(weight: mx.array) -> mx.array:
        model.model.layers[0].self_attn.o_proj.weight = weight
        return cpu_kernels.logsumexp(model(ids)).sum()

    results = []
    for change in (cpu_kernels.install, cpu_kernels.uninstall):
        change()
        value, gradient = mx.value_and_grad(loss)(weight)
        model.model.layers[0].self_attn.o_proj.weight = weight
        results.append([np.asarray(array) for array in (model(ids), value, gradient)])
    for ours, plain in zip(*results, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
