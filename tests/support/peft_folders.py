"""Folders as PEFT writes them, made by hand: its names, its shapes, its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "maker/base",
    "r": 4,
    "lora_alpha": 6,
    "lora_dropout": 0.0,
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "trainable_token_indices": None,
}
_RNG = np.random.default_rng(8)


def random_array(*shape: int) -> NDArray[np.float32]:
    return _RNG.normal(0, 0.3, shape).astype(np.float32)


def factors(shapes: Mapping[str, Sequence[int]], rank: int = 4, **ranks: int) -> Arrays:
    """Random factors for layers with weights of these shapes; `ranks`: by the last part of a name."""
    arrays = {}
    for layer, (outputs, inputs) in shapes.items():
        own = ranks.get(layer.rpartition(".")[2], rank)
        arrays[f"{layer}.lora_A.weight"] = random_array(own, inputs)
        arrays[f"{layer}.lora_B.weight"] = random_array(outputs, own)
    return arrays


def save_peft(folder: Path, arrays: Mapping[str, NDArray[np.float32]], **config: Any) -> Path:
    """Write a folder; names of arrays are those within the model."""
    folder.mkdir()
    named = {f"base_model.model.{name}": mx.array(value) for name, value in arrays.items()}
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), named, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder
