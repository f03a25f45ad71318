"""Weights of a model that replace those of its base, because they were trained or merged into.

A module is marked, and not the name of its weight: as an adapter is put on and merged, that changes.
"""

from __future__ import annotations

from collections.abc import Collection

import mlx.core as mx
import mlx.nn as nn

from forty2.recipe.saved_adapter import TAG_ROWS


def mark_replaced(model: nn.Module, names: Collection[str]) -> None:
    """Note that the weights of these names are no longer the base's."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        found = {leaf for leaf in _arrays(module) if prefix + leaf in names}
        if found:
            module.replaced = frozenset({*_replaced(module), *found})


def replaced_names(model: nn.Module) -> set[str]:
    """Return the names of the weights that are no longer the base's."""
    return {
        f"{name}.{leaf}" if name else leaf
        for name, module in model.named_modules()
        for leaf in _replaced(module)
    }


def _replaced(module: nn.Module) -> frozenset[str]:
    found: frozenset[str] = module.__dict__.get("replaced", frozenset())
    return found


def _arrays(module: nn.Module) -> list[str]:
    """Return the names of a module's own arrays, without the rows of tags, which are kept apart."""
    return [n for n, value in module.items() if isinstance(value, mx.array) and n != TAG_ROWS]
