"""Merging of adapter layers into the weights of their base, in fp32, for every kind of layer.

LoRA's weight is W + s·BA (Hu et al. 2021). DoRA's is m · V / ‖V‖ with V = W + s·BA, the norm taken of
each row (Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

from forty2.model.quantization import dense_weight, is_quantized_layer

_LINEAR, _EMBEDDING = (LoRALinear, DoRALinear), (LoRAEmbedding, DoRAEmbedding)


class Update(Protocol):
    """An intended change of a weight. It is computed when asked for: all would fill the memory."""

    def delta(self, merged: mx.array) -> mx.array:
        """Compute the change (..., out, in), fp32, from the merged weight of that shape."""


class LowRank(NamedTuple):
    """The change that an adapter layer makes."""

    left: mx.array
    """First factor, (..., out, rank), fp32, multiplied by the scale."""
    right: mx.array
    """Second factor, (..., rank, in), fp32."""
    row_scale: mx.array | None = None
    """DoRA's m / ‖V‖, (out,), fp32; None: LoRA."""

    def delta(self, merged: mx.array) -> mx.array:
        """Compute the change (..., out, in), fp32, from the merged weight of that shape."""
        product = self.left @ self.right
        if self.row_scale is None:
            return product
        # The base is merged / row_scale - product.
        return product + merged.astype(mx.float32) * (1 - 1 / self.row_scale)[:, None]


class Replaced(NamedTuple):
    """The change of a weight that was replaced whole."""

    base: nn.Module
    """The layer with the weight before."""

    def delta(self, merged: mx.array) -> mx.array:
        """Compute the change (..., out, in), fp32, from the new weight of that shape."""
        return merged.astype(mx.float32) - dense_weight(self.base)[0].astype(mx.float32)


def merge_adapter(model: nn.Module) -> dict[str, LowRank]:
    """Replace every adapter layer by a plain one, in place; the products are computed in fp32.

    Returns:
        The intended change of each weight, by layer name.
    """
    merged, updates = [], {}
    for name, module in model.named_modules():
        if isinstance(module, (*_LINEAR, *_EMBEDDING, LoRASwitchLinear)):
            layer, updates[name] = _merge(module)
            merged.append((name, layer))
        elif hasattr(module, "fuse") and "lora_a" in module:  # an architecture's own layer
            merged.append((name, module.fuse(dequantize=True)))
    model.update_modules(tree_unflatten(merged))
    return updates


def replaced_weights(base: nn.Module) -> dict[str, Replaced]:
    """Return the change of each matrix of a model trained whole, by layer name.

    Args:
        base: the model before it was trained; may be on disk still.
    """
    modules = base.named_modules()
    return {name: Replaced(m) for name, m in modules if "weight" in m and m.weight.ndim > 1}


def merged_weights(model: nn.Module, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Compute the weights of a model with its adapter merged in; the model itself does not change.

    Args:
        weights: parameters of the model, by name: of its adapter layers, and of others.

    Returns:
        The merged weights and the others, by the names that they have in the model without layers.
    """
    layers = {name: m for name, m in model.named_modules() if "lora_a" in m}
    found = {f"{name}.weight": _product(m)[0] for name, m in layers.items()}
    for name, value in weights.items():
        module, _, leaf = name.rpartition(".")
        if module in layers:  # of the layer itself
            continue
        outer, _, inner = module.rpartition(".")
        plain = f"{outer}.{leaf}" if outer in layers and inner in ("linear", "embedding") else name
        found.setdefault(plain, value)
    return found


def _merge(module: nn.Module) -> tuple[nn.Module, LowRank]:
    """Make the plain layer that computes what an adapter layer does, and the change of its weight."""
    base = module.embedding if isinstance(module, _EMBEDDING) else module.linear
    weight, update = _product(module)
    return _plain_layer(module, base, weight, base.get("bias")), update


def _product(module: nn.Module) -> tuple[mx.array, LowRank]:
    """Compute the weight that an adapter layer makes of its base's, and the change."""
    base = module.embedding if isinstance(module, _EMBEDDING) else module.linear
    weight, _ = dense_weight(base)
    a, b = module.lora_a.astype(mx.float32), module.lora_b.astype(mx.float32)
    if isinstance(module, _LINEAR):
        update = LowRank((module.scale * b).T, a.T)
    elif isinstance(module, _EMBEDDING):
        update = LowRank(module.scale * a, b)
    else:
        update = LowRank(module.scale * b, a)
    whole = weight.astype(mx.float32) + update.left @ update.right
    if isinstance(module, (DoRALinear, DoRAEmbedding)):
        row_scale = module.m.astype(mx.float32) / mx.linalg.norm(whole, axis=-1)
        update = update._replace(row_scale=row_scale)
        whole = row_scale[:, None] * whole
    return whole.astype(weight.dtype), update


def _plain_layer(
    module: nn.Module, base: nn.Module, weight: mx.array, bias: mx.array | None
) -> nn.Module:
    """Make the plain layer with this weight (..., out, in) for the place of an adapter layer."""
    layer = base
    if not is_quantized_layer(base):  # the base may be an architecture's own kind: keep it
        layer.weight = weight
        return layer
    if isinstance(module, _EMBEDDING):
        layer = nn.Embedding(*weight.shape)
    elif isinstance(module, _LINEAR):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    else:
        experts, outputs, inputs = weight.shape
        layer = SwitchLinear(inputs, outputs, experts, bias=bias is not None)
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer
