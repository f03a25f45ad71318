"""Estimates of the memory that training takes: of a phase, and in a table by model size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from forty2.files import JsonObject
from forty2.inference.logprobs import HEAD_GPU, head_is_frozen
from forty2.inference.padding import BATCH_TOKENS_GPU
from forty2.model.adapter import adapter_weights, attach_adapter, dora_layers
from forty2.model.loading import build_unloaded, parameter_count
from forty2.model.quantization import dense_weight, is_quantized_layer, quantize
from forty2.model.replaced import replaced_names
from forty2.model.surgery import blocks, frozen_depth, trained_outside_blocks
from forty2.recipe.schema import Adapter

USABLE_MEMORY = 0.75
"""Largest share of a machine's memory that a run should take."""
MACS = (8, 16, 24, 32, 48, 64)
"""Memory of Macs, in GiB, which their maker calls GB."""
PRECISIONS: Mapping[str, int | None] = {"16 bits": None, "8 bits": 8, "4 bits": 4}
"""Bits of a quantized weight; None: bfloat16."""


def _qwen(
    hidden: int, layers: int, wide: int, heads: int, values: int, **more: int | bool
) -> JsonObject:
    return {
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": wide,
        "num_attention_heads": heads,
        "num_key_value_heads": values,
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        **more,
    }


_LARGE: dict[str, int | bool] = {"vocab_size": 152064, "tie_word_embeddings": False}
MODELS: Mapping[str, JsonObject] = {
    "Qwen2.5 0.5B": _qwen(896, 24, 4864, 14, 2),
    "Qwen2.5 1.5B": _qwen(1536, 28, 8960, 12, 2),
    "Qwen2.5 3B": _qwen(2048, 36, 11008, 16, 2),
    "Qwen2.5 7B": _qwen(3584, 28, 18944, 28, 4, **_LARGE),
    "Qwen2.5 14B": _qwen(5120, 48, 13824, 40, 8, **_LARGE),
    "Qwen2.5 32B": _qwen(5120, 64, 27648, 40, 8, **_LARGE),
}
"""Shapes of well-known models, as their config.json states them, by model."""


def peak_memory(
    model: nn.Module, config: JsonObject, tokens: int, checkpointed: bool | int, *, chunk: int
) -> int:
    """Estimate the peak memory of training the adapter on a model, in bytes.

    Args:
        tokens: tokens that are computed at once, padding included.
        checkpointed: blocks whose values are recomputed, as `grad_checkpoint`.
        chunk: logits that are in memory at once.
    """
    own = adapter_weights(model)
    weights = sum(value.nbytes for _, value in tree_flatten(model.parameters()))
    frozen: int = weights - sum(value.nbytes for value in own.values())
    trained = sum(
        value.nbytes * copies for value, copies in zip(own.values(), _copies(model), strict=True)
    )
    return frozen + trained + _activation_bytes(model, config, tokens, checkpointed, chunk)


def _copies(model: nn.Module) -> list[int]:
    """Estimate how many copies of each trained parameter are in memory at once, gradients and all.

    An adapter's has a weight, the gradients of the step and of a batch, and two moments. Of a model's
    own weights, a step also holds what it replaces, which it may have to put back; and of a table all
    that is computed of it at once, since it is one large array. Both are measured.
    """
    replaced, outside = replaced_names(model), {*trained_outside_blocks(model)}
    return [
        5 if name not in replaced else 15 if name in outside and value.ndim > 1 else 6
        for name, value in adapter_weights(model).items()
    ]


def _activation_bytes(
    model: nn.Module, config: JsonObject, tokens: int, checkpointed: bool | int, chunk: int
) -> int:
    """Estimate the bytes of a forward and backward pass over `tokens`: block values and logits.

    A block stores about ten vectors of the hidden size and four of the feed-forward size per token
    (inputs of each product and non-linearity); checkpointed, only its input, but the block that is
    being recomputed stores all. The gradients of one block's values exist as well. Logits exist for a
    chunk at a time, in about five copies (themselves, their softmax, their gradients), or all at
    once where the head may be trained. All are fp32, as LoRA's own weights are, whatever the base's
    precision.
    """
    hidden = int(config.get("hidden_size", 0))
    wide = int(config.get("intermediate_size", 4 * hidden))
    vocabulary = int(config.get("vocab_size", 0))
    trained = blocks(model)[frozen_depth(model) :]
    recomputed = len(trained) if checkpointed is True else min(int(checkpointed), len(trained))
    whole = len(trained) - recomputed + int(recomputed > 0)
    values = recomputed * hidden + (whole + 1) * (10 * hidden + 4 * wide)
    values += sum(map(_dropout_values, trained[recomputed:]))
    values += max(map(_dropout_values, trained[:recomputed]), default=0)
    logits = tokens * vocabulary
    if head_is_frozen(model):
        logits = min(logits, chunk)
    return tokens * values * 4 + 5 * 4 * logits + _dora_bytes(model, tokens, recomputed)


def _dropout_values(block: nn.Module) -> int:
    """Count the numbers that a block's adapters store for a token if they have dropout.

    Each stores a mask of its input, and the input that is left.
    """
    return sum(
        2 * layer.lora_a.shape[0]
        for layer in block.modules()
        if "lora_a" in layer and getattr(layer.get("dropout"), "_p_1", 1) < 1
    )


def _dora_bytes(model: nn.Module, tokens: int, recomputed: int) -> int:
    """Estimate the bytes that DoRA layers need beyond LoRA's.

    Each stores its output before the norm is applied, and the dequantized weight if its base is
    quantized. One at a time computes its whole weight in fp32, in two copies.

    Args:
        recomputed: trained blocks, from the first, that store nothing.
    """
    stored = whole = 0
    checkpointed = blocks(model)[frozen_depth(model) :][:recomputed]
    recomputed_layers = {id(module) for block in checkpointed for module in block.modules()}
    for layer in dora_layers(model):
        base = layer.embedding if "embedding" in layer else layer.linear
        weight, _ = dense_weight(base)  # lazy: only its shape is read
        whole = max(whole, 2 * 4 * weight.size)
        if id(layer) not in recomputed_layers:
            stored += 4 * tokens * weight.shape[0]
            stored += weight.nbytes if is_quantized_layer(base) else 0
    return stored + whole


# --- the table ---


class MemoryRow(NamedTuple):
    """Estimated memory of training one model on a GPU, in bytes."""

    parameters: int
    checkpointed: int
    """With `grad_checkpoint: true`."""
    stored: int
    """With `grad_checkpoint: false`."""


def memory_row(config: JsonObject, bits: int | None) -> MemoryRow:
    """Estimate the memory of training the default adapter; no weight is computed.

    Args:
        config: shape of the model, as in its config.json.
        bits: bits of a quantized weight, 4 or 8; None: bfloat16.
    """
    model = build_unloaded(config)
    model.set_dtype(mx.bfloat16)
    parameters = parameter_count(model)
    if bits is not None:
        quantize(model, config, bits)
    attach_adapter(model, Adapter(), seed=0)
    checkpointed, stored = (
        peak_memory(model, config, BATCH_TOKENS_GPU, recomputed, chunk=HEAD_GPU)
        for recomputed in (True, False)
    )
    return MemoryRow(parameters, checkpointed, stored)


def extrapolated_row(config: JsonObject, bits: int | None) -> MemoryRow:
    """Compute `memory_row` from models of one and of two blocks, since every block adds the same."""
    one, two = (memory_row({**config, "num_hidden_layers": n}, bits) for n in (1, 2))
    more = int(config["num_hidden_layers"]) - 1
    return MemoryRow(*(a + more * (b - a) for a, b in zip(one, two, strict=True)))


def memory_table() -> str:
    """Format the memory of `MODELS` as a Markdown table, each with the smallest Mac that has it."""
    heads = [f"{p}{more}" for more in ("", ", all stored") for p in PRECISIONS]
    lines = [["model", "billion parameters", *heads], ["---"] * (2 + len(heads))]
    for name, config in MODELS.items():
        rows = [extrapolated_row(config, bits) for bits in PRECISIONS.values()]
        sizes = [row.checkpointed for row in rows] + [row.stored for row in rows]
        lines.append([name, f"{rows[0].parameters / 1e9:.2f}", *map(_cell, sizes)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(size: int) -> str:
    """Write a size in GB, and the smallest Mac of whose memory it is a usable share."""
    fits = [mac for mac in MACS if size <= USABLE_MEMORY * mac * 2**30]
    return f"{size / 1e9:.1f} ({fits[0] if fits else '–'})"
