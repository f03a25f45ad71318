"""Quantizing of weights, and conversion of quantized weights to full precision."""

from __future__ import annotations

import contextlib
import io

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import dequantize_model, quantize_model

from forty2.files import JsonObject

GROUP_SIZE = 64
"""Number of weights that share a scale."""


def is_quantized(config: JsonObject) -> bool:
    """Return whether a model's config.json says that its weights are quantized."""
    return "quantization" in config


def dense_weight(linear: nn.Module) -> tuple[mx.array, mx.array | None]:
    """Return a layer's weight (..., out, in), dequantized, and its bias if it has one."""
    weight = linear.weight
    if is_quantized_layer(linear):
        weight = mx.dequantize(
            weight,
            linear.scales,
            linear.get("biases"),
            group_size=linear.group_size,
            bits=linear.bits,
            mode=linear.mode,
        )
    return weight, linear.get("bias")


def is_quantized_layer(layer: nn.Module) -> bool:
    """Return whether a linear layer, an embedding or a layer of experts is quantized."""
    return "scales" in layer


def dequantize(model: nn.Module, config: JsonObject) -> tuple[nn.Module, JsonObject]:
    """Dequantize a model in place.

    Returns:
        The model, and its config.json without the entries about quantization.
    """
    entries = ("quantization", "quantization_config")
    return dequantize_model(model), {k: v for k, v in config.items() if k not in entries}


def quantize(model: nn.Module, config: JsonObject, bits: int) -> tuple[nn.Module, JsonObject]:
    """Quantize a model in place to 4 or 8 bits.

    Returns:
        The model, and its config.json with an entry about quantization.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints the bits per weight
        quantized: tuple[nn.Module, JsonObject] = quantize_model(model, config, GROUP_SIZE, bits)
    return quantized


def quantize_and_back(weight: mx.array, layer: nn.Module) -> mx.array:
    """Round a weight (..., out, in) to the values that it could have in a quantized layer."""
    settings = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
    return mx.dequantize(*mx.quantize(weight, **settings), **settings)
