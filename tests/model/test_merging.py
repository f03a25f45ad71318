"""Every kind of adapter layer merges into the plain layer that computes the same."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import afm7
from support.models import tiny_model

from forty2.model.adapter import attach_adapter
from forty2.model.merging import merge_adapter, replaced_weights
from forty2.model.quantization import dense_weight
from forty2.recipe.schema import Adapter

IDS = mx.array([[5, 7, 200, 31, 9, 120], [64, 3, 8, 250, 17, 2]])
LAYERS = [
    ("llama", "lora", None),
    ("llama", "lora", ["self_attn.q_proj", "model.embed_tokens"]),
    ("qwen2", "lora", ["self_attn.q_proj"]),  # with a bias
    ("mixtral", "lora", None),
    ("mixtral", "lora", ["block_sparse_moe.switch_mlp.up_proj", "lm_head"]),
    ("llama", "dora", None),
    ("llama", "dora", ["self_attn.q_proj", "model.embed_tokens"]),
    ("qwen2", "dora", ["self_attn.q_proj"]),
    ("mixtral", "dora", ["self_attn.v_proj", "lm_head"]),
]
"""Architecture, kind of adapter, keys."""
NOT_QUANTIZED = [("llama", "dora", ["self_attn.q_proj", "model.embed_tokens"])]
"""Those that a quantized model refuses."""


def adapter(kind: Any, keys: list[str] | None) -> Adapter:
    return Adapter(type=kind, keys=keys, rank=2, scale=3.0)


def trained(model: Any, kind: str, keys: list[str] | None) -> Any:
    """Attach an adapter of which every tensor does something."""
    attach_adapter(model, adapter(kind, keys), seed=1)
    for name, value in tree_flatten(model.trainable_parameters()):
        noise = 0.1 * mx.random.normal(value.shape, key=mx.random.key(len(name)))
        model.load_weights([(name, value + noise)], strict=False)
    return model


@pytest.mark.parametrize(
    ("architecture", "kind", "keys", "quantized"),
    [(*layers, False) for layers in LAYERS]
    + [(*layers, True) for layers in LAYERS if layers not in NOT_QUANTIZED],
)
def test_a_merged_adapter_computes_the_same_with_plain_layers(
    architecture: str, kind: str, keys: list[str] | None, quantized: bool
) -> None:
    model, base = tiny_model(architecture), tiny_model(architecture)
    if quantized:
        for one in (model, base):
            nn.quantize(one, group_size=32, bits=8)
    plain = np.asarray(model(IDS))
    trained(model, kind, keys)
    wanted = np.asarray(model(IDS))
    assert np.abs(wanted - plain).max() > 1e-2
    updates = merge_adapter(model)
    np.testing.assert_allclose(np.asarray(model(IDS)), wanted, atol=2e-5)
    assert updates and not any("lora_a" in module for module in model.modules())
    merged, before = dict(model.named_modules()), dict(base.named_modules())
    dense = dict(tiny_model(architecture).named_modules())
    for name, update in updates.items():
        weight = merged[name].weight
        assert merged[name].parameters().keys() == dense[name].parameters().keys(), name
        change = weight - dense_weight(before[name])[0]
        np.testing.assert_allclose(
            np.asarray(update.delta(weight)), np.asarray(change), atol=2e-5, err_msg=name
        )


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_16_bit_weights_are_merged_in_fp32_and_rounded_once(kind: str) -> None:
    model = tiny_model()
    model.set_dtype(mx.bfloat16)
    trained(model, kind, ["self_attn.q_proj", "model.embed_tokens"])
    exact = trained(tiny_model(), kind, ["self_attn.q_proj", "model.embed_tokens"])
    exact.load_weights(
        [(n, v.astype(mx.float32)) for n, v in tree_flatten(model.parameters())], strict=False
    )
    merge_adapter(model)
    merge_adapter(exact)
    weights = dict(tree_flatten(model.parameters()))
    for name, value in tree_flatten(exact.parameters()):
        assert weights[name].dtype == mx.bfloat16
        assert mx.array_equal(weights[name], value.astype(mx.bfloat16)), name


def test_replaced_weights_change_by_their_difference() -> None:
    base, model = tiny_model(), tiny_model(seed=1)
    changes = replaced_weights(base)
    assert {"model.embed_tokens", "model.layers.2.mlp.down_proj"} <= changes.keys()
    assert not any("norm" in name for name in changes)
    modules = dict(model.named_modules())
    for name, change in changes.items():
        weight = modules[name].weight
        wanted = weight - dict(base.named_modules())[name].weight
        assert mx.array_equal(change.delta(weight), wanted)


@pytest.mark.parametrize("quantized", [False, True])
def test_an_architectures_own_adapter_layer_merges_itself(quantized: bool) -> None:
    mx.random.seed(1)
    layer = afm7.FusedLoRALinear(32, [16, 8], r=2, scale=3.0)
    layer.lora_b = [0.1 * mx.random.normal(b.shape) for b in layer.lora_b]
    if quantized:
        layer.linear = layer.linear.to_quantized(32, 8)
    model = nn.Sequential(layer)
    x = mx.random.normal((3, 32))
    wanted = model(x)
    assert merge_adapter(model) == {}
    assert type(model.layers[0]) is afm7.FusedLinear
    for got, part in zip(model(x), wanted, strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(part), atol=1e-5)


def test_a_layer_quantized_in_another_way_is_dequantized_in_that_way() -> None:
    linear = nn.Linear(64, 16, bias=True)
    layer = nn.QuantizedLinear.from_linear(linear, group_size=32, bits=4, mode="mxfp4")
    weight, bias = dense_weight(layer)
    assert bias is not None
    x = mx.random.normal((3, 64))
    np.testing.assert_allclose(np.asarray(x @ weight.T + bias), np.asarray(layer(x)), atol=1e-4)
