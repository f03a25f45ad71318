"""Adapter folders of PEFT, read without mlx: their configuration, and what each tensor is.

PEFT writes `adapter_config.json` and `adapter_model.safetensors`. Its LoRA layer computes
y = Wx + s·B(Ax) with A (rank, in), B (out, rank) and s = alpha / rank, or alpha / √rank with rsLoRA.
Rank and alpha may differ between layers. Beside factors a folder may hold whole parameters that were
trained, and single rows of a table of embeddings.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forty2.errors import ModelError, first_names
from forty2.files import JsonObject, is_number

CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
RECORD = "forty2.json"
"""File that our export adds: what PEFT's own configuration has no keys for. PEFT ignores it."""
BASE_SHA256 = "base_sha256"
"""Key of the record: checksum of the weights and config of the model that the adapter was trained on."""
PREFIX = "base_model.model."
"""Beginning of the names of PEFT's tensors, before the name of the layer."""
EMBEDDING_NAMES = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")
"""Last parts of the names of tables that PEFT may save whole without being asked."""
_LARGEST_HEADER = 100_000_000
"""Bytes; safetensors allows no more."""
_PLAIN: Mapping[str, tuple[object, ...]] = {
    "bias": (None, "none"),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}
"""Values of PEFT's keys under which an adapter is what its tensors say, on an unchanged base."""
_UNSUPPORTED = (
    "layer_replication",
    "target_parameters",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "megatron_config",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "fan_in_fan_out",
)
"""PEFT's keys that ask for what mlx-lm's layers do not compute, unless they are empty."""
_NAMES: Mapping[str, tuple[type, ...]] = {
    "target_modules": (str, list),
    "exclude_modules": (str, list),
    "layers_pattern": (str, list),
    "modules_to_save": (list,),
}
"""PEFT's keys that name layers, and what their values may be."""
_FACTOR = re.compile(
    r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(?:\.default)?(?:\.weight)?"
)
_NORM = re.compile(r"(?P<layer>.+)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_ROWS = re.compile(r"(?P<layer>.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.default)?")
_SAVED = re.compile(r"\.modules_to_save(?:\.default)?(?=\.)")
"""What earlier releases of PEFT wrote within the names of whole parameters."""
_WHOLE = re.compile(r"(?P<layer>.+?)(?:\.base_layer)?\.(?P<leaf>weight|bias)")
_SHOWN = 3
"""Names that a message lists."""


@dataclass(frozen=True)
class Factors:
    """The tensors of an adapted layer, by their names in the file."""

    a: str
    """Factor (rank, in)."""
    b: str
    """Factor (out, rank)."""
    norm: str | None
    """DoRA's norms (out,); None: LoRA."""
    rank: int
    scale: float
    """Factor that multiplies the update."""
    embedding: bool
    """Whether PEFT adapted an embedding: then `in` is its number of rows."""


@dataclass(frozen=True)
class Rows:
    """Trained rows of a table."""

    tensor: str
    """Name in the file of the rows (n, D)."""
    ids: tuple[int, ...]


@dataclass(frozen=True)
class PeftAdapter:
    """A folder of PEFT. Layers have the names that they have in transformers."""

    folder: Path
    config: JsonObject
    layers: Mapping[str, Factors]
    whole: Mapping[str, str]
    """Tensors that replace a parameter of the base, by the parameter's name."""
    rows: Mapping[str, Rows]
    """Trained rows of tables, by the layer."""
    record: JsonObject
    """Contents of our own record; empty: the folder has none."""

    @property
    def weights(self) -> Path:
        """The file of the tensors."""
        return self.folder / PEFT_WEIGHTS

    @property
    def dropout(self) -> float:
        """Dropout before the first factor, in training."""
        found = self.config.get("lora_dropout")
        return float(found) if is_number(found) else 0.0

    def is_target(self, layer: str) -> bool | None:
        """Return whether the configuration asks for an adapter on a layer.

        None: it asks for all linear layers, which a name does not tell.
        """
        return is_target(self.config, layer)


def is_peft(folder: Path, config: object = None) -> bool:
    """Return whether PEFT wrote an adapter folder.

    Args:
        config: contents of its adapter_config.json; None: it is read.
    """
    if config is None:
        try:
            config = json.loads((folder / CONFIG).read_bytes())
        except (OSError, ValueError, RecursionError):
            config = {}
    if isinstance(config, dict) and ("peft_type" in config or "lora_alpha" in config):
        return True
    return not (folder / "adapters.safetensors").exists() and any(folder.glob("adapter_model.*"))


def read_peft(folder: Path) -> PeftAdapter:
    """Read the configuration of a PEFT folder and the header of its tensors.

    Raises:
        ModelError: it is damaged, or asks for what mlx-lm's layers do not compute.
    """
    config = read_config(folder / CONFIG)
    _check_config(folder / CONFIG, config)
    weights = folder / PEFT_WEIGHTS
    if not weights.exists() and (folder / "adapter_model.bin").exists():
        raise ModelError(
            f"{folder / 'adapter_model.bin'}: a pickle may run code, so it is not read; save the "
            "adapter as safetensors with PEFT"
        )
    factors: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    whole: dict[str, str] = {}
    rows: dict[str, str] = {}
    shapes = tensor_shapes(weights)
    for tensor, shape in shapes.items():
        name = _SAVED.sub("", tensor.removeprefix(PREFIX))
        if found := _FACTOR.fullmatch(name):
            _check_factor(weights, tensor, shape)
            factors.setdefault(found["layer"], {})[found["factor"]] = tensor
            embeddings |= {found["layer"]} if found["embedding"] else set()
        elif found := _NORM.fullmatch(name):
            factors.setdefault(found["layer"], {})["norm"] = tensor
        elif found := _ROWS.fullmatch(name):
            rows[found["layer"]] = tensor
        elif (found := _WHOLE.fullmatch(name)) and _is_saved_whole(config, found):
            whole[f"{found['layer']}.{found['leaf']}"] = tensor
        else:
            raise ModelError(f"{weights}: holds {tensor}, which is not part of a LoRA adapter")
    if not factors and not rows:
        raise ModelError(f"{weights}: holds no tensor of an adapter; copy the file again")
    for saved in config.get("modules_to_save") or []:
        if not any(re.match(rf"(^|.*\.){saved}($|\..*)", name) for name in whole):
            raise ModelError(
                f"{weights}: lacks {saved}, which modules_to_save names; copy the file again"
            )
    layers = {
        layer: _factors(folder, config, layer, parts, shapes, layer in embeddings)
        for layer, parts in factors.items()
    }
    _check_dora(folder, config, layers)
    return PeftAdapter(
        folder,
        config,
        layers,
        whole,
        _rows(folder, config, rows, shapes),
        _read_record(folder / RECORD),
    )


# --- the configuration ---


def read_config(file: Path) -> JsonObject:
    """Read an adapter_config.json.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not readable as JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file}: holds no adapter's configuration")
    return config


def _read_record(file: Path) -> JsonObject:
    return read_config(file) if file.exists() else {}


def _check_config(file: Path, config: JsonObject) -> None:
    """Refuse an adapter of another kind than LoRA and DoRA, and damaged keys."""
    if config.get("peft_type", "LORA") != "LORA":
        raise ModelError(
            f"{file}: peft_type is {str(config['peft_type'])[:40]}; forty2 reads LORA alone (DoRA included)"
        )
    asked = [key for key in _UNSUPPORTED if config.get(key)]
    asked += [key for key, plain in _PLAIN.items() if config.get(key) not in plain]
    if asked:
        values = ", ".join(f"{key} ({json.dumps(config[key])})" for key in asked)
        raise ModelError(
            f"{file}: asks for {values[:200]}, which forty2 does not compute; merge the adapter into "
            "its base with PEFT (merge_and_unload, save_pretrained), and use that folder as the model"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (type(rank) is int and rank >= 1 and is_number(alpha) and alpha > 0):
        raise ModelError(
            f"{file}: r or lora_alpha is missing, or no number above 0; copy the file from the adapter"
        )
    for key, fits in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        found = config.get(key) or {}
        if not isinstance(found, dict) or not all(fits(value) for value in found.values()):
            raise ModelError(
                f"{file}: {key} should give a number above 0 for each name; copy the file again"
            )
        for name in found:
            _check_pattern(file, key, name)
    for key, kinds in _NAMES.items():
        found = config.get(key)
        names = found if isinstance(found, list) else [found]
        if found is not None and not (
            isinstance(found, kinds) and all(isinstance(name, str) for name in names)
        ):
            raise ModelError(f"{file}: {key} should be names of layers; copy the file again")
        if key == "target_modules" and (
            isinstance(found, list) or str(found).lower() == "all-linear"
        ):
            continue
        for name in names:
            _check_pattern(file, key, str(name or ""))
    blocks = config.get("layers_to_transform")
    if blocks is not None and not all(
        type(number) is int for number in (blocks if isinstance(blocks, list) else [blocks])
    ):
        raise ModelError(
            f"{file}: layers_to_transform should be whole numbers; copy the file again"
        )
    if not isinstance(config.get("trainable_token_indices") or {}, list | dict):
        raise ModelError(f"{file}: trainable_token_indices should be ids; copy the file again")


def _check_pattern(file: Path, key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ModelError(
            f"{file}: {key}: {pattern[:80]} is no regular expression ({error}); copy the file again"
        ) from error


def _is_rank(value: object) -> bool:
    return type(value) is int and value >= 1


def _is_alpha(value: object) -> bool:
    return is_number(value) and value > 0


def is_target(config: JsonObject, layer: str) -> bool | None:
    """Return whether a configuration names a layer; None: it names all that are linear."""
    exclude, whole = config.get("exclude_modules"), config.get("modules_to_save")
    if isinstance(exclude, str):
        if re.fullmatch(exclude, layer):
            return False
    elif exclude and _is_named(layer, exclude):
        return False
    if whole and any(re.match(rf"(^|.*\.){name}($|\..*)", layer) for name in whole):
        return False
    targets = config.get("target_modules")
    if isinstance(targets, str):
        return None if targets.lower() == "all-linear" else bool(re.fullmatch(targets, layer))
    if not isinstance(targets, list) or not targets:
        return False
    if layer in targets:
        return True
    return _is_named(layer, targets) and _is_in_layers(config, layer)


def _is_named(layer: str, names: Sequence[object]) -> bool:
    return any(layer == name or layer.endswith(f".{name}") for name in names)


def _is_in_layers(config: JsonObject, layer: str) -> bool:
    """Return whether a layer's block is one of `layers_to_transform`, if there are any."""
    wanted, patterns = config.get("layers_to_transform"), config.get("layers_pattern")
    if wanted is None or wanted == []:
        return True
    if not patterns:
        found = re.match(r".*?\.[^.]*\.(?P<number>\d+)\.", layer)
    else:
        each = [patterns] if isinstance(patterns, str) else patterns
        tried = (re.match(rf"(?:^|.*?\.){one}\.(?P<number>\d+)\.", layer) for one in each)
        found = next((one for one in tried if one), None)
    numbers = wanted if isinstance(wanted, list) else [wanted]
    return found is not None and int(found["number"]) in numbers


def _of_pattern(patterns: Any, layer: str, default: float) -> float:
    """Return the value of the first pattern that names a layer."""
    for name, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({name})$", layer):
            return float(value)
    return default


# --- the tensors ---


def _check_factor(weights: Path, tensor: str, shape: Sequence[int]) -> None:
    if len(shape) != 2:
        raise ModelError(
            f"{weights}: {tensor} has the shape {list(shape)}, which no factor of a linear layer has"
        )


def _factors(
    folder: Path,
    config: JsonObject,
    layer: str,
    parts: Mapping[str, str],
    shapes: Mapping[str, Sequence[int]],
    embedding: bool,
) -> Factors:
    """Put the tensors of a layer together, and compare their rank with the configuration."""
    missing = [name for name in ("A", "B") if name not in parts]
    if missing:
        there = next(iter(parts.values()))
        raise ModelError(
            f"{folder / PEFT_WEIGHTS}: {there} is there without its other factor; copy the file again"
        )
    rank = int(_of_pattern(config.get("rank_pattern"), layer, config["r"]))
    found = {shapes[parts["A"]][0], shapes[parts["B"]][1]}
    if found != {rank}:
        key = "r" if rank == config["r"] else "rank_pattern"
        raise ModelError(
            f"{folder / CONFIG}: {key} is {rank}, but the tensors of {layer} have rank "
            f"{' and '.join(map(str, sorted(found)))}; copy both files again"
        )
    alpha = _of_pattern(config.get("alpha_pattern"), layer, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Factors(parts["A"], parts["B"], parts.get("norm"), rank, scale, embedding)


def _check_dora(folder: Path, config: JsonObject, layers: Mapping[str, Factors]) -> None:
    """Refuse norms of DoRA where the configuration has none, or the other way round."""
    with_norms = [layer for layer, one in layers.items() if one.norm is not None]
    if with_norms and len(with_norms) < len(layers):
        raise ModelError(
            f"{folder / PEFT_WEIGHTS}: some layers have DoRA's norms, others not; copy the file again"
        )
    if layers and bool(config.get("use_dora")) != bool(with_norms):
        raise ModelError(
            f"{folder / CONFIG}: use_dora is {json.dumps(config.get('use_dora'))}, and the tensors do "
            "not agree with that; copy both files again"
        )
    if tables := [layer for layer, one in layers.items() if one.norm and one.embedding]:
        raise ModelError(
            f"{folder}: has DoRA on {tables[0]}, an embedding, where PEFT takes norms along the other "
            "axis than mlx-lm; merge the adapter into its base with PEFT, and use that as the model"
        )


def _is_saved_whole(config: JsonObject, found: re.Match[str]) -> bool:
    """Return whether a whole parameter has a reason to be in the file."""
    names = [*(config.get("modules_to_save") or []), *EMBEDDING_NAMES]
    # `name` may be a module with layers inside, so it may end before the parameter's layer does
    return any(re.match(rf"(^|.*\.){name}($|\..*)", found["layer"]) for name in names)


def _rows(
    folder: Path, config: JsonObject, found: Mapping[str, str], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Rows]:
    """Give the trained rows of tables their ids, from `trainable_token_indices`."""
    indices = config.get("trainable_token_indices") or {}
    if isinstance(indices, list):
        indices = dict.fromkeys(found, indices)
    rows = {}
    for layer, tensor in found.items():
        ids = next((v for k, v in indices.items() if _is_named(layer, [k])), None)
        good = isinstance(ids, list) and all(type(n) is int and n >= 0 for n in ids)
        if (
            not isinstance(ids, list)
            or not good
            or not shapes[tensor][0] == len(ids) == len(set(ids))
        ):
            raise ModelError(
                f"{folder / CONFIG}: trainable_token_indices does not name the {shapes[tensor][0]} rows "
                f"of {tensor}; copy both files again"
            )
        rows[layer] = Rows(tensor, tuple(ids))
    lacking = [key for key in indices if not any(_is_named(layer, [key]) for layer in rows)]
    if lacking or (config.get("trainable_token_indices") and not rows):
        raise ModelError(
            f"{folder / PEFT_WEIGHTS}: lacks the rows of {first_names(lacking, _SHOWN) or 'tokens'} that "
            "trainable_token_indices names; copy both files again"
        )
    return rows


def tensor_shapes(file: Path) -> dict[str, list[int]]:
    """Read the shape of every tensor from the beginning of a safetensors file.

    Raises:
        ModelError: it is missing, damaged or not complete.
    """
    try:
        with file.open("rb") as data:
            length = int.from_bytes(data.read(8), "little")
            if not 2 <= length <= _LARGEST_HEADER:
                raise ValueError
            header = json.loads(data.read(length))
            end = data.seek(0, os.SEEK_END)
        header.pop("__metadata__", None)
        shapes = {str(name): [int(n) for n in one["shape"]] for name, one in header.items()}
        ends = [8 + length + int(one["data_offsets"][1]) for one in header.values()]
        if max(ends, default=end) > end or not all(shapes.values()):
            raise ValueError
    except FileNotFoundError as error:
        raise ModelError(f"{file} is missing; copy it from the adapter") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{file}: damaged or not complete; copy it again") from error
    return shapes
