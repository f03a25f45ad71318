"""Refusal of settings in a config.json that mlx-lm does not use and that change the computation.

mlx-lm builds an architecture from the keys that its `ModelArgs` has, and drops all others without a
word. So the keys that are read are recorded while the model is built. A key that was not read, whose
name is that of a setting of the computation, must have the value that transformers takes if the key
is missing: that is what mlx-lm's code computes.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.models import base
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache

from forty2.errors import ModelError
from forty2.files import JsonObject
from forty2.model import rotary
from forty2.model.configuration import filled_by_transformers, text_config

_COMPUTING = re.compile(
    r"soft_?cap|multiplier|logits?_scal|embedding_scale|scale_emb|scale_depth|residual_scale|^mup_"
    r"|clip_qkv|_act$|activation|norm_topk|experts_per_tok|routed_scaling|query_pre_attn|^tie_word"
    r"|scale_attn|parallel_residual|alibi|bidirectional|is_causal|norm.*eps|eps.*norm|^layer_types$"
    r"|^rope_|^rotary|rotary_factor$"
)
"""Names of settings that change what a model computes and leave its tensors as they are. Settings
that change its tensors (sizes, biases, norms) need no check: the tensors would not fit."""
_ROTARY = re.compile(r"^rope_|^rotary|rotary_factor$")
_NEUTRAL: tuple[object, ...] = (None, False, 0, 1, {}, [])
"""Values with which such a setting does nothing, in an architecture that transformers lacks."""
_SAME = ({"silu", "swish"}, {"gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh"})
"""Names of one and the same activation."""
_ATTENTION = {"full_attention", "sliding_attention"}
_OTHERWISE = {"short_factor": "uses long_factor for texts of every length", "truncate": "truncates"}
"""Rotary settings that mlx-lm ignores although published models have them, and what it does."""


class SettingsRead:
    """The names of the settings that a model's code has read."""

    def __init__(self) -> None:
        self.names: set[str] = set()


@contextmanager
def recorded_settings() -> Iterator[SettingsRead]:
    """Record which settings mlx-lm reads while a model is built within the `with` block."""
    record = SettingsRead()
    original = base.BaseModelArgs.__dict__["from_dict"]

    def from_dict(cls: type, params: Mapping[str, object]) -> object:
        def read(self: object, name: str) -> object:
            record.names.update(fields if name == "__dict__" else {name})
            return object.__getattribute__(self, name)

        fields = inspect.signature(cls).parameters
        recording = type(cls.__name__, (cls,), {"__getattribute__": read})
        return recording(**{name: value for name, value in params.items() if name in fields})

    base.BaseModelArgs.from_dict = classmethod(from_dict)
    try:
        yield record
    finally:
        base.BaseModelArgs.from_dict = original


def check_settings(model: nn.Module, config: JsonObject, read: SettingsRead, file: Path) -> None:
    """Refuse settings that change the computation and that the model does not use.

    Args:
        config: contents of `file`, the config.json.

    Raises:
        ModelError: there is one; the message names it.
    """
    compared = _check_rotation(model, config, filled_by_transformers(config), file)
    windowed = any(isinstance(layer, RotatingKVCache) for layer in _caches(model))
    for name, value in _unread(config, read, compared):
        if name == "layer_types" and not windowed and set(value) <= _ATTENTION:
            continue  # the window limits the length of rows instead: see `unused_window`
        raise ModelError(
            f"{file}: {name} is {value!r}, which changes what the model computes, and mlx-lm's "
            f"architecture {config['model_type']!r} does not use it; use a model without it, or "
            "another framework"
        )


def _unread(config: JsonObject, read: SettingsRead, compared: bool) -> Iterator[tuple[str, Any]]:
    """Yield the settings of the computation that were not read and are not as the code assumes.

    Args:
        compared: whether the rotary positions were compared on numbers.
    """
    part = text_config(config)
    defaults = filled_by_transformers(_sizes(part)) or {}
    rotary_known = compared or "rope_parameters" in read.names
    epsilon_read = any("eps" in name for name in read.names)
    for name, value in part.items():
        if name in read.names or not _COMPUTING.search(name):
            continue
        if (rotary_known and _ROTARY.search(name)) or name == "rope_parameters":
            continue  # the older names of these settings are judged
        if epsilon_read and "eps" in name:
            continue  # it has two names in some configurations
        if name in defaults:
            if not _same(value, defaults[name], str(part["model_type"])):
                yield name, value
        elif value not in _NEUTRAL and not name.endswith(("_act", "activation")):
            yield name, value


def _sizes(config: JsonObject) -> JsonObject:
    """Keep the keys of a configuration that lengths of other values depend on."""
    kept = ("model_type", "num_hidden_layers", "sliding_window", "sliding_window_pattern")
    return {name: config[name] for name in kept if name in config}


def _same(one: object, other: object, architecture: str) -> bool:
    if one == other or one is None:
        return True
    names = {str(one), str(other)}
    if architecture.startswith("gemma"):  # published with "gelu", and computed with its tanh form
        return all(name.startswith("gelu") for name in names)
    return any(names <= same for same in _SAME)


# --- attention windows ---


def unused_window(model: nn.Module, config: JsonObject) -> int | None:
    """Return the attention window of a configuration if mlx-lm does not apply it; None: no such.

    Texts up to its length are computed rightly without it.
    """
    part = text_config(config)
    window = part.get("sliding_window") or part.get("attention_chunk_size")
    if not isinstance(window, int) or part.get("use_sliding_window") is False:
        return None
    filled = filled_by_transformers(config) or part
    kinds = filled.get("layer_types")
    if isinstance(kinds, list) and set(kinds) <= {"full_attention"}:
        return None
    windowed = any(isinstance(layer, RotatingKVCache) for layer in _caches(model))
    return None if windowed else window


def _caches(model: nn.Module) -> Iterator[object]:
    for layer in make_prompt_cache(model):
        yield from getattr(layer, "caches", (layer,))


# --- rotary positions ---


def _check_rotation(
    model: nn.Module, config: JsonObject, filled: JsonObject | None, file: Path
) -> bool:
    """Refuse a model whose queries and keys are not rotated as its configuration prescribes.

    Returns:
        Whether its rotary modules could be compared.
    """
    settings = rotary.by_layer_type((filled or {}).get("rope_parameters"))
    if filled is None or not settings:
        return False
    own_ways: set[str] = set()
    modules = list(rotary.rotary_modules(model))
    for name, module, dims in modules:
        wanted = _settings_of(name, settings, filled.get("layer_types"))
        found = [_judge(module, dims, one, filled) for one in wanted]
        if None in found:
            return False
        if set(found) == {"wrong"}:
            raise ModelError(f"{file}: {_misfit(config, wanted[0])} ({name})")
        if "right" not in found:
            own_ways |= set(found) - {"wrong"}  # type: ignore[arg-type]
    for name in sorted(own_ways):
        warnings.warn(
            f"{file}: mlx-lm does not use rope_parameters.{name}, it {_OTHERWISE[name]}; so "
            "transformers computes other numbers with this model than mlx-lm and forty2",
            stacklevel=5,
        )
    return bool(modules)


def _misfit(config: JsonObject, wanted: JsonObject) -> str:
    """Say why a model's rotary positions are not the prescribed ones."""
    part, architecture = text_config(config), config["model_type"]
    if not any(part.get(key) for key in ("rope_theta", "rope_parameters", "rope_scaling")):
        return (
            f"names no rope_theta; transformers then takes {wanted.get('rope_theta')}, and mlx-lm's "
            f"architecture {architecture!r} another: add the model's own"
        )
    return (
        f"rope_parameters is {wanted}, and mlx-lm's architecture {architecture!r} computes other "
        "rotary positions; use a model without this scaling, or another framework"
    )


def _settings_of(name: str, settings: dict[str, JsonObject], kinds: object) -> list[JsonObject]:
    """Find the settings for the layer that a module's name is in; several if that is not known."""
    number = re.search(r"layers\.(\d+)\.", name)
    if number is not None and isinstance(kinds, list) and int(number[1]) < len(kinds):
        kind = kinds[int(number[1])]
        if kind in settings:
            return [settings[kind]]
    return list(settings.values())


def _judge(module: nn.Module, dims: int, settings: JsonObject, filled: JsonObject) -> str | None:
    """Compare a rotary module with its settings.

    Returns:
        "right", "wrong", the name of the setting that mlx-lm takes otherwise, or None: not known.
    """
    share, head = settings.get("partial_rotary_factor"), filled.get("head_dim")
    if share and isinstance(head, int) and int(head * share) != dims:
        return "wrong"
    longest = int(filled.get("max_position_embeddings") or 0)
    rotation = rotary.prescribe(settings, dims, longest)
    if rotation is None:
        return None
    if rotary.computes(module, dims, rotation):
        return "right"
    for name, changes in (
        ("truncate", {"truncate": True}),
        ("short_factor", {"short_factor": settings.get("long_factor")}),
    ):
        other = rotary.prescribe(settings | changes, dims, longest) if name in settings else None
        if other is not None and rotary.computes(module, dims, other):
            return name
    return "wrong"
