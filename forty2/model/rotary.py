"""Rotary positions as a configuration prescribes them, and as a loaded model computes them.

The equations are transformers' (`modeling_rope_utils`), which published configurations are written
for. mlx-lm's architectures each read these settings in their own way, and some read none. So the two
are compared on numbers: an architecture that ignores a setting is found whatever its code says.

Axes: R rotated values of a head, in R/2 pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from forty2.files import JsonObject

POSITIONS = (1, 37)
"""Positions at which rotations are compared."""
TOLERANCE = 1e-3
"""Largest difference of a rotated value of size 1. A wrong frequency changes some by tenths."""
_DEFAULT = "default"
_KNOWN = {
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "attention_factor",
    "truncate",
    "short_factor",
    "long_factor",
    "mrope_section",
    "mrope_interleaved",
    "finetuned",
}
"""Settings that the equations below use, or that change nothing for text."""


class Rotation(NamedTuple):
    """How one kind of layer turns queries and keys."""

    frequencies: NDArray[np.float64]
    """Radians by which each pair turns from one position to the next, (R/2,)."""
    scale: float
    """Factor on the rotated values."""


def by_layer_type(rope_parameters: object) -> dict[str, JsonObject]:
    """Divide `rope_parameters` by the type of layer that they are for; "" stands for all layers."""
    if not isinstance(rope_parameters, dict):
        return {}
    nested = {name: value for name, value in rope_parameters.items() if isinstance(value, dict)}
    return nested or {"": rope_parameters}


def rope_type(settings: Mapping[str, object]) -> str:
    """Return the type of scaling: "default" is none."""
    found = settings.get("rope_type") or settings.get("type") or _DEFAULT
    return {"su": "longrope", "mrope": _DEFAULT, "axial": _DEFAULT}.get(str(found), str(found))


def prescribe(settings: JsonObject, dims: int, longest: int) -> Rotation | None:
    """Compute the rotation that settings prescribe for short texts; None: a setting is unknown.

    Args:
        settings: one value of `by_layer_type`.
        dims: R.
        longest: max_position_embeddings.
    """
    maker = _TYPES.get(rope_type(settings))
    if maker is None or settings.keys() - _KNOWN:
        return None
    base = float(settings["rope_theta"])
    return maker(settings, base ** (np.arange(0, dims, 2) / dims), longest)


def _unscaled(settings: JsonObject, periods: NDArray[np.float64], longest: int) -> Rotation:
    return Rotation(1 / periods, 1.0)


def _linear(settings: JsonObject, periods: NDArray[np.float64], longest: int) -> Rotation:
    return Rotation(1 / (float(settings["factor"]) * periods), 1.0)


def _llama3(settings: JsonObject, periods: NDArray[np.float64], longest: int) -> Rotation:
    low, high = float(settings["low_freq_factor"]), float(settings["high_freq_factor"])
    turns = _original(settings, longest) / (2 * math.pi * periods)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return Rotation(((1 - smooth) / float(settings["factor"]) + smooth) / periods, 1.0)


def _yarn(settings: JsonObject, periods: NDArray[np.float64], longest: int) -> Rotation:
    original = _original(settings, longest)
    factor = float(settings.get("factor") or longest / original)
    pairs = len(periods)
    base = float(settings["rope_theta"])

    def pair_that_turns(times: float) -> float:
        return 2 * pairs * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    low = pair_that_turns(float(settings.get("beta_fast") or 32))
    high = pair_that_turns(float(settings.get("beta_slow") or 1))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    ramp = np.clip((np.arange(pairs) - low) / (high - low or 0.001), 0, 1)
    scale = settings.get("attention_factor")
    if scale is None:
        one, other = settings.get("mscale"), settings.get("mscale_all_dim")
        both = one and other
        scale = _mscale(factor, one if both else 1) / _mscale(factor, other if both else 0)
    return Rotation(ramp / (factor * periods) + (1 - ramp) / periods, float(scale))


def _mscale(factor: float, weight: object) -> float:
    return 1.0 if factor <= 1 else 0.1 * float(weight) * math.log(factor) + 1.0  # type: ignore[arg-type]


def _longrope(settings: JsonObject, periods: NDArray[np.float64], longest: int) -> Rotation:
    original = _original(settings, longest)
    scale = settings.get("attention_factor")
    if scale is None:
        factor = float(settings.get("factor") or longest / original)
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short = np.asarray(settings["short_factor"], np.float64)
    return Rotation(1 / (short * periods), float(scale))


def _original(settings: JsonObject, longest: int) -> float:
    return float(settings.get("original_max_position_embeddings") or longest)


_TYPES: dict[str, Callable[[JsonObject, NDArray[np.float64], int], Rotation]] = {
    _DEFAULT: _unscaled,
    "linear": _linear,
    "dynamic": _unscaled,  # it scales texts beyond the model's context alone
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


# --- what the model computes ---


def rotary_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield each rotary module of a model with its name and R."""
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ("rope", "rotary_emb"):
            dims = getattr(module, "dims", getattr(module, "dim", None))
            if isinstance(dims, int) and not module.children():
                yield name, module, dims


def computes(module: nn.Module, dims: int, rotation: Rotation) -> bool:
    """Return whether a module rotates values as prescribed."""
    interleaved = bool(getattr(module, "traditional", False))
    ones = np.zeros(dims, np.float32)
    ones[slice(0, None, 2) if interleaved else slice(dims // 2)] = 1
    for position in POSITIONS:
        turned = np.asarray(module(mx.array(ones).reshape(1, 1, 1, dims), offset=position)).ravel()
        if interleaved:
            real, imaginary = turned[0::2], turned[1::2]
        else:
            real, imaginary = turned[: dims // 2], turned[dims // 2 :]
        wanted = rotation.scale * np.exp(1j * position * rotation.frequencies)
        if not np.allclose(real + 1j * imaginary, wanted, rtol=0, atol=TOLERANCE):
            return False
    return True
