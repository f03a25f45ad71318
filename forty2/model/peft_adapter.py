"""Adapters of PEFT on a model: its tensors as mlx-lm's adapter layers.

PEFT's names are those of transformers, where a layer may be a part of one of ours, or hold several.
A factor pair of a joined layer is cut at the rows of its B. Pairs of layers that are joined here become
one pair: their A beside each other, and each B at its own rows, with zeros elsewhere. Both are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear

from forty2.errors import ModelError, first_names
from forty2.model.quantization import is_quantized_layer
from forty2.model.source_layers import Part, SourceLayers, power_of_two, source_layers
from forty2.model.surgery import has_tied_head
from forty2.model.weights import check_finite_arrays
from forty2.recipe.peft_adapter import CONFIG, Factors, PeftAdapter

_LINEAR = (nn.Linear, nn.QuantizedLinear)
_EMBEDDING = (nn.Embedding, nn.QuantizedEmbedding)
_SHOWN = 3
"""Names that a message lists."""


class LayerFactors(NamedTuple):
    """An adapter of one layer, in mlx-lm's form."""

    a: mx.array
    """(in, rank)"""
    b: mx.array
    """(rank, out)"""
    norm: mx.array | None
    """DoRA's norms (out,); None: LoRA."""
    scale: float


def attach_peft(
    model: nn.Module,
    found: PeftAdapter,
    arrays: Mapping[str, mx.array],
    base: Path | None,
    origin: str,
) -> None:
    """Put an adapter of PEFT on a bare model, to use it without further training.

    Args:
        arrays: contents of its file of tensors.
        base: the model's folder; None: its layers are those of its files.
        origin: end of a message that says which model the adapter was trained on.

    Raises:
        ModelError: the adapter does not fit the model, or does what our layers do not compute.
    """
    for name, array in arrays.items():
        if not mx.issubdtype(array.dtype, mx.floating):
            raise ModelError(
                f"{found.weights}: {name} holds whole numbers ({array.dtype}), which no adapter has; take "
                "another copy"
            )
    check_finite_arrays(found.weights, arrays)
    sources = source_layers(model, base) if base is not None else SourceLayers({}, frozenset())
    reader = _Reader(model, found, arrays, sources, origin)
    layers = reader.layers()
    reader.check_targets()
    reader.replace_whole()
    reader.replace_rows()
    attached = []
    for name, factors in layers.items():
        layer = _adapter_layer(reader.modules[name], factors, found.dropout)
        attached.append((name, layer))
    model.update_modules(tree_unflatten(attached))


class _Reader:
    """Joins an adapter's tensors with the layers of one model."""

    def __init__(
        self,
        model: nn.Module,
        found: PeftAdapter,
        arrays: Mapping[str, mx.array],
        sources: SourceLayers,
        origin: str,
    ) -> None:
        self.model = model
        self.found = found
        self.arrays = arrays
        self.sources = sources
        self.origin = origin
        self.modules: dict[str, nn.Module] = dict(model.named_modules())
        self.embeddings = [n for n, m in self.modules.items() if isinstance(m, _EMBEDDING)]
        self.parts = {
            name: sources.parts.get(name) or _itself(name, module)
            for name, module in reversed(self.modules.items())
            if isinstance(module, (*_LINEAR, *_EMBEDDING)) and name not in sources.unknown
        }
        """Parts of each layer that can have an adapter."""
        self.sources_named = {part.source for parts in self.parts.values() for part in parts}
        self.tied = has_tied_head(model)

    def layers(self) -> dict[str, LayerFactors]:
        """Return the factors of each layer of the model that the adapter changes."""
        wanted = dict(self.found.layers)
        if self.tied:
            self._check_tied(wanted)
        by_source = self._by_source(wanted)
        layers = {}
        for name, parts in self.parts.items():
            held = [by_source.get(part.source) for part in parts]
            if any(one is not None for one in held):
                layers[name] = self._gather(name, parts, held)
        return layers

    def check_targets(self) -> None:
        """Refuse tensors that the configuration does not ask for, and layers that lack theirs."""
        if self.found.config.get("target_modules") is None:
            return  # PEFT then takes some by the kind of model
        linear = {
            part.source
            for name, parts in self.parts.items()
            for part in parts
            if isinstance(self.modules[name], _LINEAR) and name.rpartition(".")[2] != "lm_head"
        }
        there = {layer: self._source(layer) for layer in self.found.layers}
        for layer, source in there.items():
            target = self.found.is_target(layer)
            if not (source in linear if target is None else target):
                raise ModelError(
                    f"{self.found.folder / CONFIG}: target_modules does not name {layer}, of which there "
                    "are tensors, so PEFT would leave them out; copy both files again"
                )
        present = set(there.values())
        kinds = {layer.rpartition(".")[2] for layer in there}
        missing = []
        for name in sorted(self.sources_named):
            target = self.found.is_target(name)
            if target is None:  # which of ours are linear for PEFT, its tensors show
                target = name in linear and name.rpartition(".")[2] in kinds
            if target and name not in present:
                missing.append(name)
        if missing:
            raise ModelError(
                f"{self.found.weights}: lacks the tensors of {first_names(missing, _SHOWN)} that "
                f"target_modules asks for{self.origin}; copy the file again"
            )

    def replace_whole(self) -> None:
        """Replace the parameters that were trained whole."""
        parameters = dict(tree_flatten(self.model.parameters()))
        replaced = []
        for name, tensor in self.found.whole.items():
            layer, _, leaf = name.rpartition(".")
            place = self._place(layer, tensor)
            target, value = f"{place}.{leaf}", self.arrays[tensor]
            if is_quantized_layer(self.modules[place]):
                self._refuse(tensor, f"replaces {place} whole, which is quantized in this model")
            if target not in parameters or parameters[target].shape != value.shape:
                here = tuple(parameters[target].shape) if target in parameters else "none"
                self._refuse(
                    tensor, f"is {tuple(value.shape)}, and {target} of this model is {here}"
                )
            if self.tied and leaf == "weight" and isinstance(self.modules[place], _EMBEDDING):
                self._check_head_follows(name, value, parameters[target])
            replaced.append((target, value.astype(parameters[target].dtype)))
        self.model.load_weights(replaced, strict=False)

    def replace_rows(self) -> None:
        """Replace the rows of tables that were trained."""
        for layer, rows in self.found.rows.items():
            place = self._place(layer, rows.tensor)
            module, value = self.modules[place], self.arrays[rows.tensor]
            if is_quantized_layer(module):
                self._refuse(
                    rows.tensor, f"replaces rows of {place}, which is quantized in this model"
                )
            weight = module.weight
            if max(rows.ids) >= weight.shape[0] or value.shape[1:] != weight.shape[1:]:
                self._refuse(
                    rows.tensor,
                    f"holds rows up to {max(rows.ids):,} of width {value.shape[-1]}, and {place} of this "
                    f"model is {tuple(weight.shape)}; did the adapter's model get new tokens?",
                )
            weight[mx.array(list(rows.ids))] = value.astype(weight.dtype)
            module.weight = weight

    # --- names ---

    def _source(self, layer: str) -> str | None:
        """Return the layer of the model's files that PEFT's name means; None: there is none."""
        if layer in self.sources_named:
            return layer
        parts = self.parts.get(layer, ())
        return parts[0].source if len(parts) == 1 and _is_whole(parts[0]) else None

    def _by_source(self, wanted: Mapping[str, Factors]) -> dict[str, Factors]:
        found = {}
        for layer, factors in wanted.items():
            source = self._source(layer)
            if source is None:
                self._refuse(factors.a, self._why_strange(layer))
            found[source] = factors
        return found

    def _why_strange(self, layer: str) -> str:
        """Say why a layer of the adapter has no place in the model."""
        last = layer.rpartition(".")[2]
        odd = sorted(n for n in self.sources.unknown if n.rpartition(".")[2] == last)
        if odd or layer in self.sources.unknown:
            return (
                f"changes {layer}, whose weight mlx-lm stores in another order, which forty2 cannot "
                "follow; merge the adapter into its base with PEFT, and use that as the model"
            )
        return f"is of {layer}, which is no layer of this model that takes an adapter"

    def _place(self, layer: str, tensor: str) -> str:
        """Return the one layer of the model that is a layer of the files, whole."""
        source = self._source(layer)
        for name, parts in self.parts.items():
            if len(parts) == 1 and parts[0].source == source and _is_whole(parts[0]):
                return name
        if layer in self.modules and layer:
            return layer
        if layer == "lm_head" and self.tied:
            return self.embeddings[0]
        self._refuse(tensor, f"is of {layer}, which is no layer of this model")

    def _refuse(self, tensor: str, reason: str) -> NoReturn:
        end = self.origin or "; was it trained on another model?"
        raise ModelError(f"{self.found.weights}: {tensor} {reason}{end}")

    # --- tied tables ---

    def _check_tied(self, wanted: dict[str, Factors]) -> None:
        """Let one adapter of a tied table stand for both uses; refuse one of the two alone."""
        tables = [layer for layer in wanted if layer in self.embeddings]
        head = wanted.pop("lm_head", None)
        if head is None and not tables:
            return
        if head is None or not tables or not self._agree(wanted[tables[0]], head):
            changed = "lm_head" if not tables else tables[0]
            raise ModelError(
                f"{self.found.folder}: changes {changed}, and this model has one table for the embeddings "
                "and the head, which PEFT adapts apart; merge the adapter into its base with PEFT (an untied "
                f"model), and use that as the model{self.origin}"
            )

    def _agree(self, table: Factors, head: Factors) -> bool:
        """Return whether the head's adapter is the embedding's, seen from the other side."""
        a, b = (self.arrays[name] for name in (table.a, table.b))
        other_a, other_b = (self.arrays[name] for name in (head.a, head.b))
        same = _same(a, other_b.T) and _same(b, other_a.T)
        return table.scale == head.scale and same

    def _check_head_follows(self, name: str, value: mx.array, before: mx.array) -> None:
        """Refuse a new table for one of the two uses of a tied one."""
        values = [
            self.arrays[tensor]
            for other, tensor in self.found.whole.items()
            if other != name and self.arrays[tensor].shape == value.shape
        ]
        same = all(bool((one == value).all()) for one in values)
        unchanged = bool((value.astype(before.dtype) == before).all())
        if not (values and same) and not unchanged:
            raise ModelError(
                f"{self.found.folder}: replaces {name} alone, and this model has one table for the "
                "embeddings and the head; merge the adapter into its base with PEFT (an untied model), "
                f"and use that as the model{self.origin}"
            )

    # --- factors ---

    def _gather(
        self, name: str, parts: Sequence[Part], held: Sequence[Factors | None]
    ) -> LayerFactors:
        """Build a layer's factors from those of the layers that it is made of."""
        module = self.modules[name]
        there = [one for one in held if one is not None]
        for part, one in zip(parts, held, strict=True):
            if one is not None:
                self._check_shapes(name, module, part, one)
        if any(one.norm is not None for one in there):
            if len(there) < len(held):
                lacking = next(p.source for p, one in zip(parts, held, strict=True) if one is None)
                self._refuse(
                    there[0].a, f"has DoRA's norms, and {lacking}, a part of {name}, has none"
                )
            if not isinstance(module, nn.Linear):
                self._refuse(
                    there[0].a,
                    f"has DoRA's norms, which {name}, a {type(module).__name__}, cannot have",
                )
        if len(parts) == 1:
            assert held[0] is not None
            return self._cut(parts[0], held[0])
        scale = there[0].scale
        if unlike := [one for one in there if not power_of_two(one.scale / scale)]:
            self._refuse(
                unlike[0].a,
                f"has the scale {unlike[0].scale:g}, and another part of {name}, which is one layer here, "
                f"{scale:g}: the two cannot be joined exactly",
            )
        cuts = [
            None if one is None else self._cut(part, one)
            for part, one in zip(parts, held, strict=True)
        ]
        pairs = [pair for pair in cuts if pair is not None]
        shared = all(_same(pair.a, pairs[0].a) for pair in pairs)
        a = pairs[0].a if shared else mx.concatenate([pair.a for pair in pairs], axis=1)
        columns, at = [], 0
        for part, pair in zip(parts, cuts, strict=True):
            if pair is None:
                columns.append(mx.zeros((a.shape[1], part.end - part.start), a.dtype))
                continue
            above = 0 if shared else at
            rank = pair.a.shape[1]
            b = pair.b * (pair.scale / scale)
            columns.append(mx.pad(b, [(above, a.shape[1] - above - rank), (0, 0)]))
            at += rank
        norms = [pair.norm for pair in pairs if pair.norm is not None]
        return LayerFactors(
            a, mx.concatenate(columns, axis=1), mx.concatenate(norms) if norms else None, scale
        )

    def _cut(self, part: Part, one: Factors) -> LayerFactors:
        """Return the factors of some rows of a layer."""
        norm = None if one.norm is None else self.arrays[one.norm][part.start : part.end]
        b = self.arrays[one.b][part.start : part.end].T
        return LayerFactors(mx.contiguous(self.arrays[one.a].T), mx.contiguous(b), norm, one.scale)

    def _check_shapes(self, name: str, module: nn.Module, part: Part, one: Factors) -> None:
        """Refuse factors of another width than the layer's."""
        inputs = module.weight.shape[1]
        if is_quantized_layer(module):
            inputs = inputs * 32 // module.bits
        outputs = part.of
        if isinstance(module, _EMBEDDING):  # PEFT looks A up by row, and B gives the width
            inputs, outputs = outputs, inputs
        if one.embedding != isinstance(module, _EMBEDDING):
            self._refuse(one.a, f"is an embedding's or a linear layer's, and {name} is the other")
        wanted: dict[str, tuple[int, ...]] = {one.a: (one.rank, inputs), one.b: (outputs, one.rank)}
        wanted |= {one.norm: (outputs,)} if one.norm is not None else {}
        for tensor, shape in wanted.items():
            if self.arrays[tensor].shape != shape:
                self._refuse(
                    tensor,
                    f"is {tuple(self.arrays[tensor].shape)}, but {name} of this model needs {shape}",
                )


def _same(a: mx.array, b: mx.array) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _itself(name: str, module: nn.Module) -> tuple[Part, ...]:
    rows = module.weight.shape[0]
    return (Part(name, 0, rows, rows),)


def _is_whole(part: Part) -> bool:
    return (part.start, part.end) == (0, part.of)


def _adapter_layer(module: nn.Module, factors: LayerFactors, dropout: float) -> nn.Module:
    """Make mlx-lm's adapter layer with these factors."""
    kind = DoRALinear if factors.norm is not None else LoRALinear
    kind = LoRAEmbedding if isinstance(module, _EMBEDDING) else kind
    layer: nn.Module = kind.from_base(
        module, r=factors.a.shape[1], scale=factors.scale, dropout=dropout
    )
    layer.lora_a, layer.lora_b = factors.a, factors.b
    if factors.norm is not None:
        layer.m = factors.norm
    return layer
