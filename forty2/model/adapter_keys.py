"""The layers that an adapter's keys name, checked before anything is attached.

mlx-lm attaches to each layer whose name is a key: the name within a block, for the last blocks, or
the name in the whole model. It says nothing of a key that names no layer, so this module does.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import mlx.nn as nn
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from forty2.errors import ModelError, first_names
from forty2.model.surgery import blocks
from forty2.recipe.schema import Adapter

_ADAPTABLE = (
    nn.Linear,
    nn.QuantizedLinear,
    nn.Embedding,
    nn.QuantizedEmbedding,
    SwitchLinear,
    QuantizedSwitchLinear,
)
"""Layers to which mlx-lm attaches LoRA, beside those that have a method for it."""
_MOST_NAMES = 12
"""Most names that a message lists."""


class _Layers(NamedTuple):
    """A model's modules by the names that keys may use; a name stands for one module or several."""

    adapted: dict[str, list[nn.Module]]
    """By name within a block, of the blocks that get an adapter."""
    others: dict[str, list[nn.Module]]
    """By name within a block, of the blocks before those."""
    whole: dict[str, nn.Module]
    """By name in the whole model."""
    outside: list[str]
    """Names in the whole model of those that are in no block."""

    def found(self, key: str) -> list[nn.Module]:
        """Return the modules that a key names."""
        return [*self.adapted.get(key, []), *([self.whole[key]] if key in self.whole else [])]


def check_keys(model: nn.Module, adapter: Adapter) -> None:
    """Refuse keys that name no layer of the model, or a layer that cannot have the adapter.

    Raises:
        ModelError: with each such key, and the names that come nearest.
    """
    layers, dora = _find_layers(model, adapter.layers), adapter.type == "dora"
    if adapter.keys is None:
        _check_all(layers, dora)
        return
    if not adapter.keys:
        raise ModelError(
            "adapter.keys is empty, so nothing would be trained; name layers, or leave it out for all"
        )
    usable = _usable(layers, dora)
    faults = [fault for key in adapter.keys if (fault := _fault(key, layers, usable, dora))]
    faults += _named_twice(layers, adapter.keys)
    if faults:
        raise ModelError(f"adapter.keys: {'; '.join(faults)}")


def _find_layers(model: nn.Module, count: int | None) -> _Layers:
    """Find the modules that keys may name.

    Args:
        count: blocks that get an adapter, from the last; None: all.
    """
    first = 0 if count is None else len(blocks(model)) - count
    adapted: dict[str, list[nn.Module]] = {}
    others: dict[str, list[nn.Module]] = {}
    inside: set[int] = set()
    for number, block in enumerate(blocks(model)):
        for name, module in reversed(block.named_modules()):
            inside.add(id(module))
            if name:
                (others if number < first else adapted).setdefault(name, []).append(module)
    whole = {name: module for name, module in reversed(model.named_modules()) if name}
    outside = [name for name, module in whole.items() if id(module) not in inside]
    return _Layers(adapted, others, whole, outside)


def _usable(layers: _Layers, dora: bool) -> list[str]:
    """List the names of all layers that can have the adapter, those within blocks first."""
    within = [name for name, found in layers.adapted.items() if not _objection(found[0], dora)]
    return within + [n for n in layers.outside if not _objection(layers.whole[n], dora)]


def _objection(module: nn.Module, dora: bool) -> str | None:
    """Say why a module cannot have the adapter; None: it can."""
    kind = type(module).__name__
    if not isinstance(module, _ADAPTABLE):
        if not dora and hasattr(module, "to_lora"):
            return None
        return f"{kind}, which takes no adapter"
    if not dora or type(module).__call__ in (nn.Linear.__call__, nn.Embedding.__call__):
        return None
    if type(module) is nn.QuantizedLinear:
        if module.mode == "affine" and 32 % module.bits == 0:  # DoRALinear counts 32 // bits
            return None
        kind = f"{kind} of {module.bits} bits in mode {module.mode}"
    return f"{kind}, which takes lora but not dora"


def _check_all(layers: _Layers, dora: bool) -> None:
    """Refuse to give every layer of the blocks an adapter that some of them cannot have."""
    unfit = {
        name: objection
        for name, found in layers.adapted.items()
        for module in found
        if isinstance(module, _ADAPTABLE) and (objection := _objection(module, dora))
    }
    if unfit:
        name, objection = next(iter(unfit.items()))
        fit = ", ".join(n for n in _usable(layers, dora) if n in layers.adapted and n not in unfit)
        raise ModelError(
            f"adapter.type is dora, but {name} is a {objection}; name the layers to train"
            + (f": adapter.keys: [{fit}]" if fit else " in adapter.keys, or use lora")
        )


def _fault(key: str, layers: _Layers, usable: Sequence[str], dora: bool) -> str | None:
    """Say what is wrong with a key, and which names come nearest; None: nothing."""
    found = layers.found(key)
    if not found:
        if key in layers.others:
            return f"{key} is only in blocks before those of adapter.layers: raise adapter.layers"
        return f"{key!r} names no layer of this model; {_nearest(key, usable)}"
    held = [name for name in usable if name.startswith(f"{key}.")]
    if held and not isinstance(found[0], _ADAPTABLE):
        return f"{key} is several layers: name those to train, of {_listed(held)}"
    objections = [objection for module in found if (objection := _objection(module, dora))]
    if not objections:
        return None
    return f"{key} is a {objections[0]}; layers that can have one: {_listed(usable)}"


def _nearest(key: str, usable: Sequence[str]) -> str:
    """Name the layers that a key may have meant: with the same last part, else spelled alike."""
    last = key.rpartition(".")[2]
    near = [name for name in usable if last and name.rpartition(".")[2] == last]
    near = near or difflib.get_close_matches(key, usable, 3)
    by_last = {name.rpartition(".")[2]: name for name in reversed(usable)}
    near = near or [by_last[part] for part in difflib.get_close_matches(last, by_last, 3)]
    if not near and "head" in last:  # a model without a head of its own uses its embedding
        near = [name for name in usable if "embed" in name]
    return f"did you mean {_listed(near)}?" if near else f"there are {_listed(usable)}"


def _named_twice(layers: _Layers, keys: Sequence[str]) -> list[str]:
    """List the layers that two keys name: within each block, and in the whole model."""
    by_module = {id(module): key for key in keys for module in layers.adapted.get(key, [])}
    return [
        f"{key} is named twice: {by_module[id(layers.whole[key])]} names it too"
        for key in keys
        if key in layers.whole and id(layers.whole[key]) in by_module
    ]


def _listed(names: Sequence[str]) -> str:
    return first_names(names, _MOST_NAMES)
