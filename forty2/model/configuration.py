"""A model folder's configuration files: read whole, and completed where mlx-lm reads only a part.

transformers 5 keeps all rotary settings in `rope_parameters`, and has renamed other keys. Most of
mlx-lm's architectures read the older keys alone, and take a default for what they miss. So the older
keys are added.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from mlx_lm import utils as mlx_lm_utils

from forty2.errors import ModelError
from forty2.files import JsonObject, not_readable
from forty2.model.rotary import by_layer_type, rope_type

_MAX_LAYERS = 10_000
"""Most layers of a model: with a damaged count, mlx-lm would build layers until memory is full."""
GENERATION = "generation_config.json"
UNKNOWN_CONTEXT = 32_768
"""Longest row in tokens where a configuration names no context."""


def read_config(path: Path) -> JsonObject:
    """Read a model folder's config.json, with the rotary settings under all their names.

    Raises:
        ModelError: it or generation_config.json is missing or damaged, it is not a model's, or two
            of its keys contradict each other.
    """
    file = path / "config.json"
    try:
        config = json.loads(file.read_bytes())
        if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
            raise ModelError(f"{file}: names no model_type, so it is not a model's config.json")
        layers = config.get("num_hidden_layers")
        if isinstance(layers, int) and layers > _MAX_LAYERS:
            raise ModelError(
                f"{file}: {layers:,} layers are too many for a model; copy the file from the model"
            )
        generation = read_generation_config(path)  # mlx-lm reads it with the configuration
        merged = complete(dict(mlx_lm_utils.load_config(path)), file)
        stops = stop_token_ids(config, generation, path)
        if stops:
            merged["eos_token_id"] = stops if len(stops) > 1 else stops[0]
        return merged
    except RecursionError as error:
        raise ModelError(f"{file}: nested too deeply; copy the file from the model") from error
    except (OSError, ValueError, AttributeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(not_readable(file, error)) from error


def read_generation_config(path: Path) -> JsonObject:
    """Read a model folder's generation_config.json; empty if there is none.

    Raises:
        ModelError: it is damaged.
    """
    file = path / GENERATION
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{not_readable(file, error)}; copy the file from the model") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file}: not a JSON object; copy the file from the model")
    return found


# --- rotary settings ---


def complete(config: JsonObject, file: Path | None = None) -> JsonObject:
    """Add the older names of the settings in `rope_parameters`, at the top and in nested configs.

    Raises:
        ModelError: an older name is there already, with another value.
    """
    result = dict(config)
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict):
            result[key] = complete(value, file)
    for other, name in _synonyms(config).items():
        if name in config and other not in config:
            result[other] = config[name]
    for key, value in _older_names(config).items():
        if result.get(key) not in (None, {}) and not _agree(result[key], value):
            raise ModelError(
                f"{file or 'config.json'}: {key} is {result[key]!r}, but rope_parameters says "
                f"{value!r}; keep the one that the model was trained with"
            )
        if result.get(key) in (None, {}):
            result[key] = value
    return result


def _synonyms(config: JsonObject) -> Mapping[str, str]:
    """Return the names under which transformers also knows a key, such as n_embd and hidden_size."""
    from transformers import CONFIG_MAPPING

    try:
        known: Mapping[str, str] = CONFIG_MAPPING[config["model_type"]].attribute_map
    except (KeyError, TypeError, AttributeError):
        return {}
    return known


def _older_names(config: JsonObject) -> JsonObject:
    """Translate `rope_parameters` into the keys of transformers 4."""
    layers = by_layer_type(config.get("rope_parameters"))
    settings = layers.get("", layers.get("full_attention"))
    if settings is None or "rope_theta" not in settings:
        return {}
    found: JsonObject = {"rope_theta": settings["rope_theta"]}
    if "partial_rotary_factor" in settings:
        found["partial_rotary_factor"] = settings["partial_rotary_factor"]
    if config.get("model_type") == "gpt_neox":
        found["rotary_emb_base"] = settings["rope_theta"]
        found["rotary_pct"] = settings.get("partial_rotary_factor", 1.0)
    kind = rope_type(settings)
    if kind != "default":
        rest = {k: v for k, v in settings.items() if k not in found}
        found["rope_scaling"] = rest | {"rope_type": kind, "type": kind}
        if kind == "longrope" and "original_max_position_embeddings" in rest:
            key = "original_max_position_embeddings"
            found[key] = rest[key]
    if "sliding_attention" in layers and "rope_theta" in layers["sliding_attention"]:
        found["rope_local_base_freq"] = layers["sliding_attention"]["rope_theta"]
    return found


def _agree(one: object, other: object) -> bool:
    """Return whether two values are the same, or two scalings have no key that differs."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        one, other = ({**s, "rope_type": rope_type(s), "type": rope_type(s)} for s in (one, other))
        return all(one[key] == other[key] for key in one.keys() & other.keys())
    return one == other


# --- what transformers makes of it ---


def text_config(config: JsonObject) -> JsonObject:
    """Return the part of a configuration that describes the language model."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) and "model_type" in nested else config


def filled_by_transformers(config: JsonObject) -> JsonObject | None:
    """Return a configuration as transformers reads it: standardised, and with its defaults.

    Returns:
        The language model's part; None: transformers does not know the model, or refuses the values.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    written = copy.deepcopy(text_config(config))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        filled: JsonObject = AutoConfig.for_model(written.pop("model_type"), **written).to_dict()
    except Exception:  # errors of many kinds
        return None
    finally:
        logging.set_verbosity(verbosity)
    return text_config(filled)


def named_context(config: JsonObject) -> int | None:
    """Return the number of tokens that a model was made for; None: its configuration names none.

    A key missing from the configuration has transformers' default.
    """
    config = filled_by_transformers(config) or text_config(config)
    for key in ("n_positions", "max_position_embeddings", "n_ctx"):
        if config.get(key):
            return int(config[key])
    return None


# --- the end of a reply ---


def stop_token_ids(config: JsonObject, generation: JsonObject, path: Path) -> list[int]:
    """Collect the ids that end a reply: those of the configuration, and those of generation.

    Args:
        config: config.json; a model with a text_config may name them there.
        generation: generation_config.json.
        path: the model's folder, for messages.

    Raises:
        ModelError: a value is not a token id.
    """
    found: list[int] = []
    for name, part in _places(config, generation):
        value = part.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if token is None:
                continue
            if not isinstance(token, int) or isinstance(token, bool) or token < 0:
                raise ModelError(
                    f"{path / name}: eos_token_id is {token!r}, which is not a token id"
                )
            found.append(token)
    return list(dict.fromkeys(found))


def _places(config: JsonObject, generation: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    yield GENERATION, generation
    yield "config.json", config
    nested = config.get("text_config")
    if isinstance(nested, dict):
        yield "config.json: text_config", nested


# --- the longest row ---


class RowLimit(NamedTuple):
    """The longest row that a model computes rightly."""

    tokens: int
    reason: str
    """Where the number is from."""

    def refuse(self, tokens: int, place: str) -> None:
        """Refuse a row that is longer.

        Args:
            place: the row, for the message.

        Raises:
            ModelError: it is longer.
        """
        if tokens > self.tokens:
            raise ModelError(
                f"{place}: {tokens:,} tokens are more than {self.tokens:,}, {self.reason}; shorten it"
            )


def row_limit(config: JsonObject, unused_window: int | None) -> RowLimit:
    """Find the longest row from a configuration.

    Args:
        unused_window: attention window that mlx-lm does not apply, in tokens; None: no such.
    """
    named = named_context(config)
    filled = filled_by_transformers(config) or text_config(config)
    scaled = [
        _scaled_context(settings, named or 0)
        for settings in by_layer_type(filled.get("rope_parameters")).values()
    ]
    if named is None:
        limit = RowLimit(UNKNOWN_CONTEXT, "assumed because config.json names no context")
    else:
        limit = RowLimit(max([named, *scaled]), "the model's context")
    if unused_window is not None and unused_window < limit.tokens:
        return RowLimit(unused_window, "the model's attention window, which mlx-lm does not apply")
    return limit


def _scaled_context(settings: JsonObject, named: int) -> int:
    """Return the context to which a scaling extends the named one, or the named one."""
    kind, factor = rope_type(settings), settings.get("factor") or 1
    if kind in ("linear", "dynamic"):
        return int(named * factor)
    original = settings.get("original_max_position_embeddings") or named
    return int(original * factor) if kind == "yarn" else named
