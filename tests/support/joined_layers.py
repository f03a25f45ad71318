"""Tiny models whose files have the projections of attention in other pieces than the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from support.models import tiny_model


def joining(model: Any) -> Any:
    """Let a phi3 read files that have q, k and v apart."""

    class Joining(type(model)):  # type: ignore[misc]
        def sanitize(self, given: dict[str, mx.array]) -> dict[str, mx.array]:
            found = dict(given)
            for name in given:
                if "q_proj" in name:
                    each = [found.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
                    found[name.replace("q_proj", "qkv_proj")] = mx.concatenate(each)
            return found

    model.__class__ = Joining
    return model


def cutting(model: Any) -> Any:
    """Let a llama read files that have q, k and v joined."""

    class Cutting(type(model)):  # type: ignore[misc]
        def sanitize(self, given: dict[str, mx.array]) -> dict[str, mx.array]:
            found = dict(given)
            for name in given:
                if "qkv_proj" in name:
                    each = mx.split(found.pop(name), [32, 48])
                    found |= {name.replace("qkv", p): v for p, v in zip("qkv", each, strict=True)}
            return found

    model.__class__ = Cutting
    return model


def save_files(folder: Path, model: Any, change: Callable[[Any], Any]) -> Path:
    """Write a model's weights in the pieces that a function makes of them."""
    folder.mkdir()
    pieces = change(dict(tree_flatten(model.parameters())))
    mx.save_safetensors(str(folder / "model.safetensors"), pieces)
    return folder


def apart(given: dict[str, mx.array]) -> dict[str, mx.array]:
    return cutting(tiny_model()).sanitize(given)  # type: ignore[no-any-return]


def joined(given: dict[str, mx.array]) -> dict[str, mx.array]:
    return joining(tiny_model()).sanitize(given)  # type: ignore[no-any-return]
