"""The only door to mlx_lm: loading and saving models, adapters, generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forty2.model.loading import LoadedModel as LoadedModel
    from forty2.model.loading import load as load
    from forty2.model.loading import resolve as resolve

_HOME = {
    "LoadedModel": "loading",
    "load": "loading",
    "resolve": "loading",
}


def __getattr__(name: str) -> Any:
    """Import on first use: fetching or naming a model needs no mlx."""
    import importlib

    if name in _HOME:
        return getattr(importlib.import_module(f"forty2.model.{_HOME[name]}"), name)
    raise AttributeError(f"module 'forty2.model' has no attribute {name!r}")
