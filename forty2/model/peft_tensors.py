"""The adapter layers of a model as tensors of PEFT, under the names that transformers' layers have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear

from forty2.errors import ModelError
from forty2.model.source_layers import Part, SourceLayers
from forty2.model.surgery import has_tied_head
from forty2.recipe.peft_adapter import PREFIX
from forty2.recipe.saved_adapter import TAG_ROWS

HEAD = "lm_head"
"""Name of the head in transformers, also of one that is the table of embeddings."""


class PeftLayer(NamedTuple):
    """An adapted layer in PEFT's form."""

    a: mx.array
    """(rank, in)"""
    b: mx.array
    """(out, rank)"""
    norm: mx.array | None
    """DoRA's norms (out,); None: LoRA."""
    scale: float
    embedding: bool = False

    def tensors(self, layer: str) -> dict[str, mx.array]:
        """Return the tensors by the names that PEFT gives them."""
        form = "lora_embedding_{}" if self.embedding else "lora_{}.weight"
        found = {form.format("A"): self.a, form.format("B"): self.b}
        if self.norm is not None:
            found["lora_magnitude_vector"] = self.norm
        return {f"{PREFIX}{layer}.{name}": mx.contiguous(value) for name, value in found.items()}


class _Piece(NamedTuple):
    """The part of an adapter layer that belongs to one layer of the model's files."""

    part: Part
    layer: PeftLayer
    """Its B and norms have the part's rows."""


def peft_layers(model: nn.Module, sources: SourceLayers) -> dict[str, PeftLayer]:
    """Return the adapter of a model by the layers of its files.

    Raises:
        ModelError: PEFT has no layer that computes what one of the model's does; the message names it.
    """
    tied = has_tied_head(model)
    pieces: dict[str, list[_Piece]] = {}
    layers: dict[str, PeftLayer] = {}
    for name, module in reversed(model.named_modules()):
        if "lora_a" not in module:
            continue
        if (objection := _objection(name, module, sources)) is not None:
            raise ModelError(
                f"{name}: PEFT has no adapter for {objection}; merge the adapter into its base (forty2 "
                "fuse), and share that model"
            )
        a, b = module.lora_a, module.lora_b
        if isinstance(module, LoRAEmbedding):
            parts = sources.parts.get(name)
            layers[parts[0].source if parts else name] = PeftLayer(
                a.T, b.T, None, module.scale, embedding=True
            )
            if tied:  # one pair for both uses of the table, which PEFT adapts apart
                layers[HEAD] = PeftLayer(b, a, None, module.scale)
            continue
        norm = module.m if isinstance(module, DoRALinear) else None
        rows = b.shape[1]
        at = 0
        for part in sources.parts.get(name) or (Part(name, 0, rows, rows),):
            end = at + part.end - part.start
            cut = PeftLayer(
                a.T, b[:, at:end].T, None if norm is None else norm[at:end], module.scale
            )
            pieces.setdefault(part.source, []).append(_Piece(part, cut))
            at = end
    return layers | {source: _joined(source, found) for source, found in pieces.items()}


def _objection(name: str, module: nn.Module, sources: SourceLayers) -> str | None:
    """Say what PEFT has no adapter for in an adapter layer; None: nothing."""
    if name in sources.unknown:
        return "a weight whose rows the files have in another order"
    if isinstance(module, (LoRALinear, DoRALinear, LoRAEmbedding)):
        return None
    if isinstance(module, DoRAEmbedding):
        return "the norms of DoRA on an embedding"
    return "a mixture of experts" if module.lora_a.ndim == 3 else "this architecture's own layer"


def _joined(source: str, pieces: list[_Piece]) -> PeftLayer:
    """Make one pair of factors of those of a layer's pieces."""
    pieces = sorted(pieces, key=lambda piece: piece.part.start)
    rows = pieces[0].part.of
    covered = sum(piece.part.end - piece.part.start for piece in pieces)
    if len(pieces) == 1 and covered == rows:
        return pieces[0].layer
    with_norms = pieces[0].layer.norm is not None
    if with_norms and covered < rows:
        raise ModelError(
            f"{source}: DoRA is on {covered} of its {rows} rows, which PEFT cannot express; merge the "
            "adapter into its base (forty2 fuse), and share that model"
        )
    columns = [
        mx.pad(piece.layer.b, [(piece.part.start, rows - piece.part.end), (0, 0)])
        for piece in pieces
    ]
    norm = (
        mx.concatenate([p.layer.norm for p in pieces if p.layer.norm is not None])
        if with_norms
        else None
    )
    return PeftLayer(
        mx.concatenate([piece.layer.a for piece in pieces]),
        mx.concatenate(columns, axis=1),
        norm,
        pieces[0].layer.scale,
    )


def peft_rows(rows: Mapping[str, mx.array], sources: SourceLayers) -> dict[str, mx.array]:
    """Return the trained rows of tags by the layer of the files whose rows they are."""
    found = {}
    for name, value in rows.items():
        layer = name.removesuffix(f".{TAG_ROWS}")
        parts = sources.parts.get(layer)
        found[parts[0].source if parts else layer] = value
    return found


def mlx_tensors(model: nn.Module) -> tuple[dict[str, mx.array], int, float]:
    """Return the tensors of a model's adapter layers by mlx-lm's names, their rank and their scale.

    Raises:
        ModelError: layers have several ranks or scales, for which mlx-lm's form has no place.
    """
    adapted = {n: m for n, m in model.named_modules() if "lora_a" in m}
    ranks = sorted({int(m.lora_a.shape[-1]) for m in adapted.values()})
    scales = sorted({float(m.scale) for m in adapted.values()})
    for what, values in (("ranks", ranks), ("scales", scales)):
        if len(values) != 1:
            raise ModelError(
                f"the adapter's layers have the {what} {values}, and mlx-lm's form holds one; use the folder "
                "as it is, or merge it into its base (forty2 fuse)"
            )
    names = {f"{name}.{leaf}" for name in adapted for leaf in ("lora_a", "lora_b", "m")}
    # in the order of training, on which the bytes of the file depend
    tensors = {n: v for n, v in tree_flatten(model.parameters()) if n in names}
    return tensors, ranks[0], scales[0]
