"""Checks of weight files before they are loaded, and of weights after: whole, complete and finite.

A safetensors file begins with the length of a JSON header (8 bytes), which names each tensor's type,
shape and bytes. So a file that was cut short is found from its header and size alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from forty2.errors import ModelError
from forty2.files import JsonObject, is_lfs_pointer, not_readable

INDEX = "model.safetensors.index.json"
_PATTERN = "model*.safetensors"
"""Names of the files that mlx-lm loads."""
_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.safetensors")
_AGAIN = "download the file again"
_METHODS = {"mxfp4", "mxfp8", "bitnet", "fp8", "compressed-tensors", "modelopt"}
"""Values of quant_method that mlx-lm reads, beside AWQ, which it reads in part."""
_TITLES = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "hqq": "HQQ"}
_REMEDY = "take the model's unquantized weights, or a version made for MLX"


# --- files ---


def check_weight_files(path: Path, config: JsonObject) -> None:
    """Refuse weight files of a model folder that mlx-lm cannot read, or would read in part.

    Raises:
        ModelError: a file is missing, cut short or of another kind; the message names it.
    """
    found = sorted(path.glob(_PATTERN))
    if not found:
        raise ModelError(_no_weights(path))
    names = {file: tensor_names(file) for file in found}
    _check_complete(path, names)
    seen: dict[str, Path] = {}
    for file, tensors in names.items():
        for tensor in tensors:
            if tensor in seen:
                raise ModelError(
                    f"{file}: holds {tensor}, and so does {seen[tensor].name}; remove the file that "
                    "does not belong to the model"
                )
            seen[tensor] = file
    _check_quantization(path / "config.json", config, seen)


def tensor_names(file: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file, from its header.

    Raises:
        ModelError: it cannot be read, or is cut short.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as data:
            first = data.read(8)
            if is_lfs_pointer(file):
                raise ModelError(
                    f"{file}: is a pointer of Git LFS, not the weights; run `git lfs pull`"
                )
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length > size - 8:
                raise ModelError(f"{file}: cut short ({size:,} bytes); {_AGAIN}")
            header = json.loads(data.read(length))
        tensors = {name: part for name, part in header.items() if name != "__metadata__"}
        needed = 8 + length + max((part["data_offsets"][1] for part in tensors.values()), default=0)
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{file}: not a safetensors file, or damaged; {_AGAIN}") from error
    if size < needed:
        raise ModelError(f"{file}: cut short: {size:,} bytes of {needed:,}; {_AGAIN}")
    return list(tensors)


def _check_complete(path: Path, names: Mapping[Path, list[str]]) -> None:
    """Refuse a folder that lacks a file of several, or a tensor that the index names."""
    index = path / INDEX
    if not index.exists():
        for file in names:
            shard = _SHARD.fullmatch(file.name)
            for number in range(1, int(shard[3]) + 1 if shard is not None else 0):
                assert shard is not None
                part = f"{shard[1]}-{number:0{len(shard[2])}}-of-{shard[3]}.safetensors"
                if not (path / part).exists():
                    raise ModelError(f"{path / part}: missing, {file.name} is there; {_AGAIN}")
        return
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        listed = {str(tensor): str(file) for tensor, file in places.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{not_readable(index, error)}; {_AGAIN}") from error
    held = {file.name: set(tensors) for file, tensors in names.items()}
    for tensor, name in listed.items():
        if name not in held:
            raise ModelError(f"{path / name}: missing, although {INDEX} lists it; {_AGAIN}")
        if tensor not in held[name]:
            raise ModelError(
                f"{path / name}: does not hold {tensor}, although {INDEX} says so; download the "
                "model again"
            )


def _no_weights(path: Path) -> str:
    """Say what a folder without weights for mlx-lm holds instead."""
    kinds = {
        "*.gguf": "GGUF weights; convert them first: forty2 model import {} --out FOLDER",
        "adapter_model.*": "only an adapter of PEFT ({}); give its base as `model`",
        "adapters.safetensors": "only an adapter; give it as `adapter`, and its base as `model`",
        "*.bin": "only weights in PyTorch's format ({}), which may hold code; convert the model to "
        "safetensors with transformers' save_pretrained",
        "*.npz": "weights of an early MLX ({}); take a version in safetensors",
        "*.safetensors": "no model*.safetensors, but {}; take the model's files in the format of "
        "transformers",
    }
    for pattern, message in kinds.items():
        file = next(iter(sorted(path.glob(pattern))), None)
        if file is not None:
            return f"{path}: holds {message.format(file.name)}"
    if (path / INDEX).exists():
        return f"{path}: holds no weights, only their {INDEX}; download the model again"
    return f"{path}: holds no weights (model.safetensors is missing); download the model again"


def _check_quantization(file: Path, config: JsonObject, tensors: Iterable[str]) -> None:
    """Refuse weights in a packing that mlx-lm does not read; it would read some as others."""
    stated = config.get("quantization_config")
    if config.get("quantization") or not isinstance(stated, dict):
        return
    method = str(stated.get("quant_method", "unknown"))
    title = _TITLES.get(method, method)
    if method == "awq":
        version = str(stated.get("version", "gemm")).lower()
        if stated.get("bits", 4) != 4 or version != "gemm":
            raise ModelError(
                f"{file}: the weights are quantized with AWQ ({stated.get('bits')} bits, {version}), "
                f"of which mlx-lm reads only 4 bits in the form gemm; {_REMEDY}"
            )
        if not any(name.endswith(".qweight") for name in tensors):
            raise ModelError(
                f"{file}: says that the weights are quantized with AWQ, but the files hold no "
                f"qweight; {_REMEDY}"
            )
    elif method not in _METHODS:
        raise ModelError(
            f"{file}: the weights are quantized with {title}, which mlx-lm does not read; {_REMEDY}"
        )


# --- values ---


def check_finite(model: nn.Module, path: Path) -> None:
    """Refuse a model with a weight that is not a number, or infinite; this reads all weights.

    A sum is finite only if all its terms are (or it overflows, so each suspect is looked at).

    Args:
        path: folder of the model, to name the file.

    Raises:
        ModelError: there is one; the message names the file and the tensor.
    """
    weights = {
        name: weight
        for name, weight in tree_flatten(model.parameters())
        if mx.issubdtype(weight.dtype, mx.floating) and "lora_" not in name
    }
    sums = [weight.sum().astype(mx.float32) for weight in weights.values()]
    if not sums or mx.isfinite(mx.stack(sums)).all():
        return
    suspects = {
        name: weight
        for (name, weight), total in zip(weights.items(), sums, strict=True)
        if not mx.isfinite(total) and not mx.isfinite(weight).all()
    }
    if suspects:
        for file in sorted(path.glob(_PATTERN)):
            check_finite_arrays(file, mx.load(str(file)))  # type: ignore[arg-type]
        raise ModelError(f"{path}: {next(iter(suspects))} holds NaN or infinite values; {_AGAIN}")


def check_finite_arrays(file: Path, arrays: Mapping[str, mx.array]) -> None:
    """Refuse a file with a value that is not a number, or infinite.

    Raises:
        ModelError: there is one; the message names the file and the tensor.
    """
    for name, array in arrays.items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all():
            bad = int((~mx.isfinite(array)).sum())
            raise ModelError(
                f"{file}: {name} holds {bad:,} NaN or infinite values of {array.size:,}; the file is "
                "damaged, or was saved by a training that had failed; take another copy"
            )
