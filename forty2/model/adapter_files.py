"""An adapter folder's files: what is in them, and whether they are whole and fit the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from pydantic import TypeAdapter, ValidationError

from forty2.errors import ModelError, first_names
from forty2.files import JsonObject, is_number, not_readable
from forty2.model.weights import check_finite_arrays, tensor_names
from forty2.recipe.peft_adapter import is_peft, read_peft
from forty2.recipe.saved_adapter import CONFIG as CONFIG
from forty2.recipe.saved_adapter import PHASE_ATTENTION, is_of_phases
from forty2.recipe.saved_adapter import TAGS as TAGS
from forty2.recipe.saved_adapter import WEIGHTS as WEIGHTS
from forty2.recipe.schema import PhaseAttention
from forty2.recipe.tags import AddedTags

STOP_TOKENS = "stop_token_ids"
"""Key of adapter_config.json with the ids that ended the turns that the adapter was trained on;
other readers of adapters ignore it."""
LEAVES = ("lora_a", "lora_b", "m")
"""Last parts of the names of an adapter's tensors, beside those of phase attention."""
_SHOWN = 3
"""Tensors that a message names."""


def read_adapter_config(folder: Path) -> JsonObject:
    """Read and check an adapter's adapter_config.json, and the header of its weights.

    Of a PEFT folder it is what our export recorded beside PEFT's own configuration.

    Raises:
        ModelError: it is damaged, of another kind or too old; or the weights are cut short.
    """
    file = folder / CONFIG
    if is_peft(folder):
        return read_peft(folder).record
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(not_readable(file, error)) from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: not a JSON object, so it does not fit this model")
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise ModelError(f"{file}: unknown fine_tune_type {kind!r}; known are lora, dora and full")
    names = tensor_names(folder / WEIGHTS)
    if kind != "full" and "num_layers" not in config:
        raise ModelError(
            f"{file}: num_layers is missing, as in adapters of early mlx-lm releases; add "
            f'"num_layers": {config.get("lora_layers") or count_layers(names)}, the number of '
            "adapted blocks"
        )
    if kind != "full" and not isinstance(config.get("lora_parameters"), dict):
        raise ModelError(
            f"{file}: lora_parameters (rank, scale, dropout) is missing, so the adapter does not fit "
            "this model"
        )
    if kind != "full":
        _check_numbers(file, config)
    return config


def _check_numbers(file: Path, config: JsonObject) -> None:
    """Refuse a shape of an adapter that is not in numbers, or names no list of layers."""
    parameters = config["lora_parameters"]
    values = {f"lora_parameters.{key}": parameters.get(key) for key in ("rank", "scale", "dropout")}
    for key, value in {"num_layers": config["num_layers"], **values}.items():
        whole = key == "num_layers" or key.endswith("rank")
        if not is_number(value) or (whole and type(value) is not int):
            raise ModelError(
                f"{file}: {key} must be a {'whole ' * whole}number, not {value!r:.40}; copy the file "
                "again"
            )
    keys = parameters.get("keys")
    if keys is not None and not (isinstance(keys, list) and all(isinstance(k, str) for k in keys)):
        raise ModelError(f"{file}: lora_parameters.keys must be a list of names, not {keys!r}")


def count_layers(names: Sequence[str]) -> int:
    """Count the blocks that tensors are named after: model.layers.3.self_attn… is of block 3."""
    blocks = set()
    for name in names:
        _, _, rest = name.partition("layers.")
        number = rest.partition(".")[0]
        if number.isdigit():
            blocks.add(int(number))
    return len(blocks)


def check_adapter_tensors(
    model: nn.Module, arrays: Mapping[str, mx.array], folder: Path, *, full: bool, origin: str
) -> None:
    """Refuse tensors that do not make up the adapter layers of a model, or are not finite.

    Args:
        model: the model with its adapter layers.
        arrays: contents of the adapter's weights file.
        full: whether all weights of some blocks were trained; then any of the model's may be there.
        origin: end of a message that says which model the adapter was trained on.

    Raises:
        ModelError: a tensor is missing, superfluous, of another shape, or not finite.
    """
    parameters = dict(tree_flatten(model.parameters()))
    own = {name for name in parameters if full or is_layer_tensor(name)}
    file = folder / WEIGHTS
    misfit = f"so the adapter does not fit this model{origin}"
    if surplus := sorted(arrays.keys() - own):
        raise ModelError(
            f"{file}: {first_names(surplus, _SHOWN)}, which this model lacks, {misfit}"
        )
    for name, array in arrays.items():
        if not mx.issubdtype(array.dtype, mx.floating):
            raise ModelError(
                f"{file}: {name} holds whole numbers ({array.dtype}), which no adapter has; take "
                "another copy"
            )
        if array.shape != (shape := parameters[name].shape):
            raise ModelError(
                f"{file}: {name} has the shape {array.shape}, which does not match {shape}, {misfit}"
            )
    if not full and (missing := sorted(own - arrays.keys())):
        raise ModelError(
            f"{file}: lacks {first_names(missing, _SHOWN)} of the {len(own)} tensors that {CONFIG} describes, "
            f"{misfit}; take another copy"
        )
    check_finite_arrays(file, arrays)


def is_layer_tensor(name: str) -> bool:
    """Return whether a tensor of this name belongs to an adapter layer, or to phase attention."""
    return name.rpartition(".")[2] in LEAVES or is_of_phases(name)


def phase_settings(file: Path, config: JsonObject) -> PhaseAttention | None:
    """Read the settings of phase attention in an adapter_config.json; None: the adapter has none.

    Raises:
        ModelError: they are damaged.
    """
    found = config.get(PHASE_ATTENTION)
    if found is None:
        return None
    try:
        return TypeAdapter(PhaseAttention).validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (PHASE_ATTENTION, *first["loc"])))
        raise ModelError(f"{file}: {where}: {first['msg']}; copy the file again") from error


def recorded_stop_tokens(folder: Path) -> list[int]:
    """Return the ids that ended the turns that an adapter was trained on; empty: not recorded.

    Raises:
        ModelError: adapter_config.json is damaged, or the record is not a list of ids.
    """
    found = read_adapter_config(folder).get(STOP_TOKENS, [])
    if not isinstance(found, list) or not all(type(n) is int and n >= 0 for n in found):
        raise ModelError(f"{folder / CONFIG}: {STOP_TOKENS} is not a list of token ids")
    return list(found)


def recorded_tags(folder: Path) -> AddedTags | None:
    """Return the tags that an adapter was trained with; None: it has none.

    Raises:
        ModelError: adapter_config.json is damaged, or the record is no record of tags.
    """
    found = read_adapter_config(folder).get(TAGS)
    try:
        return AddedTags.from_json(found) if found is not None else None
    except ValueError as error:
        raise ModelError(
            f"{folder / CONFIG}: {TAGS} is no record of tags; copy the file again"
        ) from error
