"""A model's configuration as the metadata of a GGUF file, and its tensors under their GGUF names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from forty2.errors import ModelError, first_names
from forty2.files import JsonObject
from forty2.model.configuration import UNKNOWN_CONTEXT, named_context, text_config
from forty2.model.gguf.architectures import (
    ARCHITECTURES,
    NUMBERS,
    Architecture,
    Weight,
    head_size,
)
from forty2.model.gguf.file import Value
from forty2.model.gguf.rope_scaling import write_rope_scaling
from forty2.model.loading import LoadedModel

_WINDOW = 4096
"""Attention window of Gemma 2 in tokens where config.json names none."""


class Described(NamedTuple):
    """A model in llama.cpp's terms."""

    architecture: Architecture
    values: Mapping[str, Value]
    """Metadata by key."""
    weights: dict[str, tuple[Weight, mx.array]]
    """Tensors, as mlx has them, by their GGUF names; taking one out frees its memory."""
    factors: Mapping[str, NDArray[np.float32]]
    """Tensors of the rotary scaling."""
    vocabulary_rows: int
    """Rows of the embeddings."""


def describe_model(loaded: LoadedModel) -> Described:
    """Describe a model in llama.cpp's terms; its weights may be on disk still.

    Raises:
        ModelError: llama.cpp does not compute what the model does, as far as forty2 knows.
    """
    kind = loaded.config["model_type"]
    found = [one for one in ARCHITECTURES.values() if kind in one.model_types]
    if not found:
        known = [name for one in ARCHITECTURES.values() for name in one.model_types]
        raise ModelError(
            f"{loaded.path}: architecture {kind!r} cannot be exported, only {', '.join(known)}; "
            "convert the model with llama.cpp's own script"
        )
    architecture = found[0]
    model = loaded.model.get("language_model", loaded.model)
    config = _settings(loaded, model)
    _check(architecture, config, f"{loaded.path}: ")
    try:
        scaling = write_rope_scaling(architecture, config)
    except ModelError as error:
        raise ModelError(f"{loaded.path}: {error}") from error
    name = architecture.name
    head = head_size(config)
    numbers: dict[str, Value] = {
        "vocab_size": config["vocab_size"],
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": int(head * config.get("partial_rotary_factor", 1.0)),
    }
    for key, number in (NUMBERS | dict(architecture.numbers)).items():
        numbers[key] = number.kind(config[number.name])
    numbers |= scaling.values
    return Described(
        architecture,
        {f"{name}.{key}": value for key, value in numbers.items()},
        _weights(architecture, config, model, loaded),
        scaling.factors,
        config["vocab_size"],
    )


def _settings(loaded: LoadedModel, model: nn.Module) -> JsonObject:
    """Return the settings that mlx-lm computes with, and those of config.json that it does not use."""
    stated = text_config(loaded.config)
    config = dict(vars(model.args))
    config["tie_word_embeddings"] = "lm_head" not in model
    config["vocab_size"] = model.model.embed_tokens.weight.shape[0]
    config.setdefault("sliding_window", stated.get("sliding_window") or _WINDOW)
    context = config.get("max_position_embeddings") or named_context(loaded.config)
    config["max_position_embeddings"] = context or UNKNOWN_CONTEXT
    return config


def _check(architecture: Architecture, config: JsonObject, where: str) -> None:
    """Refuse settings that llama.cpp has no metadata for and takes to be others."""
    expected = dict(architecture.settings) | {"rope_traditional": False}
    scalar = architecture.query_scalar(config)
    if scalar is not None:
        expected["query_pre_attn_scalar"] = scalar
    blocks = config["num_hidden_layers"]
    if "no_rope_layer_interval" in expected:
        expected["no_rope_layers"] = [int((n + 1) % 4 != 0) for n in range(blocks)]
        del expected["no_rope_layer_interval"]
    if config.get("layer_types") is not None:
        expected["layer_types"] = ["full_attention"] * blocks
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ModelError(
                f"{where}{key} is {config[key]}, and llama.cpp computes {architecture.name} with "
                f"{value}, so the model cannot be exported"
            )


def _weights(
    architecture: Architecture, config: JsonObject, model: nn.Module, loaded: LoadedModel
) -> dict[str, tuple[Weight, mx.array]]:
    """Find the model's tensors under their GGUF names."""
    there = dict(tree_flatten(model.parameters()))
    weights = {}
    for name, weight in architecture.weights(config):
        if weight.name not in there or there[weight.name].shape != weight.shape:
            shape = there[weight.name].shape if weight.name in there else "missing"
            raise ModelError(
                f"{loaded.path}: {weight.name} is {shape}, but {architecture.name} in llama.cpp has "
                f"{weight.shape}, so the model cannot be exported"
            )
        weights[name] = weight, there.pop(weight.name)
    if there:
        raise ModelError(
            f"{loaded.path}: {first_names(sorted(there), 3)} cannot be exported: llama.cpp's "
            f"{architecture.name} has no such tensor"
        )
    return weights
