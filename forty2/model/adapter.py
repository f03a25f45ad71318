"""LoRA adapters: attach, save, load, merge. Files are stock mlx-lm's, so its tools read them too.

mlx-lm's layer computes y = Wx + scale · B(Ax): `scale` multiplies the update directly, where other
packages write alpha / rank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

from forty2.errors import ModelError, on_one_line
from forty2.files import JsonObject
from forty2.model.adapter_files import (
    CONFIG,
    STOP_TOKENS,
    WEIGHTS,
    check_adapter_tensors,
    check_not_peft,
    read_adapter_config,
)
from forty2.model.gradient_checkpointing import keyed_dropout
from forty2.model.quantization import dense_weight
from forty2.recipe.schema import Adapter

# --- on a model ---


def attach_adapter(model: nn.Module, adapter: Adapter, *, seed: int) -> None:
    """Freeze the model and add new LoRA layers, with B = 0, so that its output does not change yet.

    Raises:
        ModelError: the adapter asks for blocks or layers that the model does not have.
    """
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
    """Return the adapter's parameters by name: those that training changes."""
    return dict(tree_flatten(model.trainable_parameters()))


class Update(NamedTuple):
    """An adapter's change of a weight, as factors: the products would take as much as the model."""

    lora_a: mx.array
    """First factor, (in, rank), fp32."""
    lora_b: mx.array
    """Second factor, (rank, out), fp32, multiplied by the scale."""

    def delta(self) -> mx.array:
        """Compute the change (out, in), fp32."""
        return self.lora_b.T @ self.lora_a.T


def merge_adapter(model: nn.Module) -> dict[str, Update]:
    """Replace every adapter layer by a plain one, in place; the products are computed in fp32.

    Returns:
        The intended change of each weight, by layer name.
    """
    merged, updates = [], {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            scaled = module.scale * module.lora_b.astype(mx.float32)
            update = Update(module.lora_a.astype(mx.float32), scaled)
            weight, bias = dense_weight(module.linear)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            linear.weight = (weight.astype(mx.float32) + update.delta()).astype(weight.dtype)
            if bias is not None:
                linear.bias = bias
            merged.append((name, linear))
            updates[name] = update
        elif hasattr(module, "fuse") and "lora_a" in module:
            merged.append((name, module.fuse(dequantize=True)))
    model.update_modules(tree_unflatten(merged))
    return updates


# --- in a folder ---


def adapter_config(adapter: Adapter, model: nn.Module) -> JsonObject:
    """Build mlx-lm's `adapter_config.json` for an adapter on this model."""
    parameters: JsonObject = {
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


def save_adapter(
    model: nn.Module, adapter: Adapter, folder: Path, *, stop_token_ids: Sequence[int] = ()
) -> None:
    """Write the adapter into an existing folder.

    Args:
        stop_token_ids: ids that ended the turns of its training rows. Whoever loads the adapter, or
            the model that it is merged into, also stops at these.
    """
    mx.save_safetensors(str(folder / WEIGHTS), adapter_weights(model))
    config = adapter_config(adapter, model)
    if stop_token_ids:
        config[STOP_TOKENS] = sorted(set(stop_token_ids))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def restore_adapter(model: nn.Module, folder: Path) -> None:
    """Load saved weights into adapter layers that are already attached."""
    model.load_weights(list(load_arrays(folder / WEIGHTS).items()), strict=False)


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Put a saved adapter on a bare model, to use it without further training.

    Raises:
        ModelError: its files are missing or damaged, or made for a model of another shape.
    """
    config = read_adapter_config(folder)
    try:
        load_adapters(model, str(folder))
        full = config.get("fine_tune_type") == "full"
        check_adapter_tensors(model, load_arrays(folder / WEIGHTS), folder, full=full)
    except ModelError:
        raise
    except Exception as error:  # a damaged config makes mlx-lm raise errors of many types
        raise ModelError(
            f"{folder}: the adapter does not fit this model: {on_one_line(error)}"
        ) from error


def adapter_dir(path: str | Path) -> Path:
    """Find the folder of an adapter: the path itself, or the last finished phase of a run folder.

    Raises:
        ModelError: there is none, or the folder holds a whole model.
    """
    folder = Path(os.path.expanduser(path))
    if (folder / CONFIG).exists():
        if not (folder / WEIGHTS).exists():
            check_not_peft(folder)
            old = (
                "; adapters.npz is of an early mlx-lm" if (folder / "adapters.npz").exists() else ""
            )
            raise ModelError(f"{folder}: {WEIGHTS} is missing{old}")
        return folder
    phases = sorted(p.parent for p in folder.glob(f"phase[0-9]*/{CONFIG}"))
    if phases:
        return max(phases, key=lambda p: int("".join(filter(str.isdigit, p.name.split("_")[0]))))
    if (folder / "config.json").exists() and any(folder.glob("model*.safetensors")):
        raise ModelError(f"{folder}: this is a whole model: give it as --model")
    raise ModelError(f"{folder}: no adapter here ({CONFIG} is missing, and no finished phase)")


class TrainedOn(NamedTuple):
    """The model that an adapter was trained on, from its run's record; None: not recorded."""

    name: str | None
    """Name in the recipe: a folder, a hub name or `smollm2`."""
    path: str | None
    """Folder that it was loaded from."""
    sha256: str | None
    """Checksum of its weights and config."""


def trained_on(adapter: str | Path) -> TrainedOn:
    """Read which model an adapter was trained on.

    Args:
        adapter: a run folder, or an adapter folder inside one.
    """
    folder = Path(os.path.expanduser(adapter)).absolute()
    for place in (folder, *folder.parents[:2]):
        try:
            run = json.loads((place / "run.json").read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(run, dict):
            found = [run.get(key) for key in ("model", "model_path", "model_sha256")]
            return TrainedOn(*(value if isinstance(value, str) else None for value in found))
    return TrainedOn(None, None, None)


def recorded_model(adapter: str | Path) -> str | None:
    """Return the model that an adapter's run names in its run.json; None: it names none.

    Args:
        adapter: a run folder, or an adapter folder inside one.
    """
    return trained_on(adapter).name


def load_arrays(path: Path) -> dict[str, mx.array]:
    """Load the arrays of a safetensors file, by name.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        loaded = mx.load(str(path))
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    assert isinstance(loaded, dict)
    return loaded
