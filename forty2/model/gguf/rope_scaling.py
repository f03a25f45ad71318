"""Rotary scaling in GGUF files, read and written: as metadata, or as a tensor of divisors.

Methods: linear; YaRN (Peng et al. 2023, https://arxiv.org/abs/2309.00071); Llama 3's, of which the file
holds only the divisors; LongRoPE (Ding et al. 2024, https://arxiv.org/abs/2402.13753) with factors for
short and for long texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from gguf.quants import dequantize
from numpy.typing import NDArray

from forty2.errors import ModelError
from forty2.files import JsonObject
from forty2.model.gguf.architectures import Architecture, head_size
from forty2.model.gguf.file import GgufFile

DIVISORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
FACTORS = {DIVISORS, SHORT, LONG}
"""Tensors that scale rotary frequencies, and are no weights of the model."""
_AGAIN = "download the file again"
_YARN = {"beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 0, "truncate": True}
"""YaRN's other settings: what llama.cpp takes them for."""


def shortest(value: float) -> float:
    """Return the shortest decimal of a float32: GGUF stores 1e-5 as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


# --- reading ---


def read_rope_scaling(file: GgufFile, architecture: Architecture, config: JsonObject) -> JsonObject:
    """Read the rotary scaling as llama.cpp does: a factor without a type is linear.

    Args:
        config: config.json without it.

    Returns:
        The entries that config.json lacks; empty: there is no scaling.

    Raises:
        ModelError: it is of a kind that cannot be imported.
    """
    if "longrope" in architecture.scaled_rope and LONG in file.tensors:
        return _read_longrope(file, architecture.name, config)
    prefix = f"{architecture.name}.rope.scaling."
    factor = file.get(f"{prefix}factor", float)
    factor = factor or file.get(f"{architecture.name}.rope.scale_linear", float)
    method = file.get(f"{prefix}type", str) or ("linear" if factor else "none")
    unknown = file.keys(prefix) - {"type", "factor", "original_context_length", "finetuned"}
    if DIVISORS in file.tensors:
        if unknown or (method != "none" and factor not in (None, 1.0)):
            raise ModelError(
                f"{file.path}: {DIVISORS} and rope scaling {method!r} together cannot be imported; "
                "use the model's safetensors"
            )
        return {"rope_scaling": _read_llama3(file, config["rope_theta"], head_size(config))}
    if method not in ("none", "linear", "yarn") or unknown:
        raise ModelError(
            f"{file.path}: rope scaling {method!r} {sorted(unknown) or ''} cannot be imported; "
            "use the model's safetensors"
        )
    if method == "none" or (method == "linear" and factor in (None, 1.0)):
        return {}
    if not factor or factor < 0:
        raise ModelError(f"{file.path}: {prefix}factor is {factor}; {_AGAIN}")
    scaling = {"rope_type": method, "factor": shortest(factor)}
    original = file.get(f"{prefix}original_context_length", int)
    if method == "yarn" and original is not None:
        scaling["original_max_position_embeddings"] = original
    return {"rope_scaling": scaling}


def _read_llama3(file: GgufFile, theta: float, head: int) -> JsonObject:
    """Find the parameters of Llama 3's scaling; the file holds only the divisors computed from them.

    Published models differ only in the factor, which is the largest divisor. The other divisors
    are checked against it.
    """
    tensor = file.tensors[DIVISORS]
    divisors = dequantize(tensor.data, tensor.kind).ravel()
    scaling = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    with np.errstate(all="ignore"):  # a damaged value equals nothing
        expected = _llama3_divisors(scaling, theta, head)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-3):
        raise ModelError(
            f"{file.path}: {DIVISORS} is not Llama 3's scaling, so it cannot be imported; "
            "use the model's safetensors"
        )
    return scaling


def _read_longrope(file: GgufFile, name: str, config: JsonObject) -> JsonObject:
    """Read LongRoPE's factors; the scale of attention must be the usual one."""
    original = file.need(f"{name}.rope.scaling.original_context_length", int)
    factors = {}
    for key, tensor in (("short_factor", SHORT), ("long_factor", LONG)):
        if tensor not in file.tensors:
            raise ModelError(f"{file.path}: tensor {tensor} is missing; {_AGAIN}")
        found = file.tensors[tensor]
        factors[key] = [shortest(value) for value in dequantize(found.data, found.kind).ravel()]
    found_scale = file.get(f"{name}.rope.scaling.attn_factor", float) or 1.0
    scale = _longrope_scale(config["max_position_embeddings"], original)
    if not math.isclose(found_scale, scale, rel_tol=1e-5):
        raise ModelError(
            f"{file.path}: {name}.rope.scaling.attn_factor is {found_scale}, not {scale:.6f}, and is "
            "not imported; use the model's safetensors"
        )
    return {
        "original_max_position_embeddings": original,
        "rope_scaling": {"rope_type": "longrope", "type": "longrope", **factors},
    }


# --- writing ---


class RopeScaling(NamedTuple):
    """Rotary scaling as a GGUF file has it."""

    values: Mapping[str, str | int | float]
    """Metadata, by its key without the architecture's name before it."""
    factors: Mapping[str, NDArray[np.float32]]
    """Tensors."""


def write_rope_scaling(architecture: Architecture, config: JsonObject) -> RopeScaling:
    """Convert the rotary scaling of a configuration to metadata and tensors.

    Args:
        config: settings of the model, with `rope_scaling` as mlx-lm uses it.

    Raises:
        ModelError: llama.cpp does not compute it.
    """
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("type") or scaling.get("rope_type") or "default"
    kind = "longrope" if kind == "su" else kind
    if kind == "default":
        return RopeScaling({}, {})
    if kind not in architecture.scaled_rope:
        raise ModelError(
            f"rope scaling {kind!r}: llama.cpp does not compute it for {architecture.name} (only "
            f"{', '.join(architecture.scaled_rope) or 'none'}), so the model cannot be exported"
        )
    if kind == "longrope":
        return _write_longrope(scaling, config)
    if kind == "llama3":
        divisors = _llama3_divisors(scaling, config["rope_theta"], head_size(config))
        return RopeScaling({}, {DIVISORS: divisors.astype(np.float32)})
    values = {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        other = [key for key, value in _YARN.items() if scaling.get(key, value) != value]
        if other or scaling.get("attention_factor") is not None:
            raise ModelError(
                f"rope scaling 'yarn' with {(other or ['attention_factor'])[0]} set: llama.cpp takes "
                "another value for it, so the model cannot be exported"
            )
        original = scaling.get("original_max_position_embeddings", 4096)  # mlx-lm's default
        values["rope.scaling.original_context_length"] = int(original)
    return RopeScaling(values, {})


def _write_longrope(scaling: JsonObject, config: JsonObject) -> RopeScaling:
    original = int(config["original_max_position_embeddings"])
    values: dict[str, str | int | float] = {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": _longrope_scale(config["max_position_embeddings"], original),
    }
    factors = {SHORT: scaling["short_factor"], LONG: scaling["long_factor"]}
    arrays = {name: np.asarray(values, np.float32) for name, values in factors.items()}
    return RopeScaling(values, arrays)


# --- equations ---


def _llama3_divisors(scaling: JsonObject, theta: float, head: int) -> NDArray[np.float64]:
    """Compute the number that each frequency is divided by, (head / 2,).

    Frequencies that turn fewer than `low_freq_factor` times in the original context are divided by the
    factor, those that turn more than `high_freq_factor` times are kept, and between them it is smooth.
    """
    low = scaling.get("low_freq_factor", 1.0)
    high = scaling.get("high_freq_factor", 4.0)
    original = scaling.get("original_max_position_embeddings", 8192)
    turns = original / (2 * np.pi * theta ** (np.arange(0, head, 2) / head))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / np.float64(scaling["factor"]) + smooth))


def _longrope_scale(context: int, original: int) -> float:
    """Compute LongRoPE's scale of attention: sqrt(1 + ln s / ln L), s = context / L."""
    if context <= original:
        return 1.0
    return math.sqrt(1 + math.log(context / original) / math.log(original))
