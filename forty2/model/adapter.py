"""LoRA adapters: attach, save, load. Files are stock mlx-lm's, so its tools read them too.

mlx-lm's layer computes y = Wx + scale · B(Ax): `scale` multiplies the update as it is, where other
packages write alpha / rank.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

from forty2.errors import ModelError
from forty2.model.gradient_checkpointing import keyed_dropout
from forty2.recipe.schema import Adapter

WEIGHTS = "adapters.safetensors"
CONFIG = "adapter_config.json"


def adapter_config(adapter: Adapter, model: nn.Module) -> dict[str, Any]:
    """mlx-lm's `adapter_config.json` for an adapter of this shape on this model."""
    parameters: dict[str, Any] = {
        "rank": adapter.rank,
        "scale": adapter.scale,
        "dropout": adapter.dropout,
    }
    if adapter.keys is not None:
        parameters["keys"] = list(adapter.keys)
    return {
        "fine_tune_type": "lora",
        "num_layers": len(model.layers) if adapter.layers is None else adapter.layers,
        "lora_parameters": parameters,
    }


def attach_adapter(model: nn.Module, adapter: Adapter, *, seed: int) -> None:
    """Freeze the model and put fresh LoRA layers on it, B = 0, so that nothing changes yet."""
    blocks = len(model.layers)
    if adapter.layers is not None and adapter.layers > blocks:
        raise ModelError(f"adapter.layers is {adapter.layers}, but the model has {blocks} blocks")
    model.freeze()
    mx.random.seed(seed)
    config = adapter_config(adapter, model)
    keys = set(adapter.keys) if adapter.keys is not None else None
    linear_to_lora_layers(model, config["num_layers"], {**config["lora_parameters"], "keys": keys})
    keyed_dropout(model)
    if not tree_flatten(model.trainable_parameters()):
        names = sorted({name for name, _ in model.layers[-1].named_modules() if name})
        raise ModelError(
            f"adapter.keys {list(adapter.keys or ())} match nothing in this model; "
            f"a block holds {', '.join(names)}"
        )


def adapter_weights(model: nn.Module) -> dict[str, mx.array]:
    """The adapter's parameters by name: what training changes."""
    return dict(tree_flatten(model.trainable_parameters()))


def save_adapter(model: nn.Module, adapter: Adapter, folder: Path) -> None:
    """Write the adapter into an existing folder."""
    mx.save_safetensors(str(folder / WEIGHTS), adapter_weights(model))
    (folder / CONFIG).write_text(json.dumps(adapter_config(adapter, model), indent=2) + "\n")


def restore_adapter(model: nn.Module, folder: Path) -> None:
    """Load saved weights into adapter layers that are already attached."""
    model.load_weights(list(load_arrays(folder / WEIGHTS).items()), strict=False)


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Put a saved adapter on a bare model, for use (no further training).

    Raises:
        ModelError: files missing or damaged, or made for a model of another shape.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        if config.get("fine_tune_type", "lora") not in ("lora", "dora", "full"):
            raise ModelError(f"{folder / CONFIG}: unknown fine_tune_type")
        load_adapters(model, str(folder))
    except Exception as error:  # what a config makes of mlx-lm has many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"{folder}: the adapter does not fit this model: {reason[:300]}"
        ) from error


def adapter_dir(path: str | Path) -> Path:
    """The folder that holds an adapter: the one named, or a run's last finished phase."""
    folder = Path(os.path.expanduser(path))
    if (folder / CONFIG).exists():
        if not (folder / WEIGHTS).exists():
            raise ModelError(f"{folder}: {WEIGHTS} is missing")
        return folder
    phases = sorted(p.parent for p in folder.glob(f"phase[0-9]*/{CONFIG}"))
    if phases:
        return max(phases, key=lambda p: int("".join(filter(str.isdigit, p.name.split("_")[0]))))
    if (folder / "config.json").exists():
        raise ModelError(f"{folder}: this is a whole model, not an adapter: give it as --model")
    raise ModelError(f"{folder}: no adapter here ({CONFIG} is missing, and no finished phase)")


def recorded_model(adapter: str | Path) -> str | None:
    """Return the model that an adapter was trained on, as the run that it belongs to records it.

    Args:
        adapter: a run folder, or the folder of one of its phases.

    Raises:
        ModelError: there is no adapter.
    """
    folder = adapter_dir(adapter)
    for run in (Path(os.path.expanduser(adapter)), folder.parent):
        try:
            record = json.loads((run / "run.json").read_text("utf-8"))
        except (OSError, ValueError):
            continue
        model = record.get("model") if isinstance(record, dict) else None
        if isinstance(model, str):
            return model
    return None


def load_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, by name.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        loaded = mx.load(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    assert isinstance(loaded, dict)
    return loaded
