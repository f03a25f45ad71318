"""What a phase trains: the adapter, the embeddings, or all weights. What earlier phases trained stays.

Adapter layers stay, frozen, under trained embeddings, and are trained on by the next phase of their
kind. They are merged into the weights, in fp32, where a phase trains all weights, or layers of the
other kind. The merged and the trained weights replace the base's, and are saved with the adapter.
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from forty2.errors import ModelError
from forty2.model.adapter import adapter_weights, attach_adapter, freeze_base, layer_kind
from forty2.model.adapter_files import LEAVES
from forty2.model.merging import merge_adapter
from forty2.model.phase_attention import phase_coupling
from forty2.model.quantization import is_quantized_layer
from forty2.model.replaced import mark_replaced
from forty2.model.tag_rows import tags_of
from forty2.model.tags import find_tables
from forty2.recipe.schema import Adapter, Trains
from forty2.recipe.tags import AddedTags


def set_trained(
    model: nn.Module, trains: Trains, adapter: Adapter, *, seed: int, tags: AddedTags | None = None
) -> None:
    """Make a phase's parameters trainable and freeze all others; outputs change by rounding at most.

    The rows of tags are trained in every phase; with tags, `embeddings` are these rows alone. Where
    weights of the model itself are trained, it computes in fp32 from then on.

    Args:
        model: the base, or what the phases before left.
        adapter: shape of new layers, if the phase needs them.
        seed: seed of their weights.
        tags: tags of the model; None: it has none.

    Raises:
        ModelError: the model cannot train what the phase asks for.
    """
    before = layer_kind(model)
    if trains in ("lora", "dora"):
        if before == trains:
            freeze_base(model, tags)
            _unfreeze_layers(model)
            return
        _merge(model, trains)
        attach_adapter(model, replace(adapter, type=trains), seed=seed, tags=tags)
        return
    freeze_base(model, tags)
    if trains == "embeddings" and tags is not None:
        return
    _check_dense(model, trains)
    if trains == "full":
        _merge(model, trains)
    # Steps of a small learning rate would be lost in the rounding of 16 bits.
    model.set_dtype(mx.float32)
    for trained in find_tables(model) if trains == "embeddings" else [model]:
        trained.unfreeze(recurse=trains == "full")
    mark_replaced(model, adapter_weights(model))


def _unfreeze_layers(model: nn.Module) -> None:
    for module in model.modules():
        if "lora_a" in module:
            module.unfreeze(recurse=False, keys=[leaf for leaf in LEAVES if leaf in module])
    if (phases := phase_coupling(model)) is not None:
        phases.unfreeze()


def _merge(model: nn.Module, trains: Trains) -> None:
    """Merge adapter layers, if there are some, into the weights below them."""
    if layer_kind(model) is None:
        return
    _check_dense(model, trains)
    layers = {name: m for name, m in model.named_modules() if "lora_a" in m}
    if any(tags_of(layer) is not None for layer in layers.values()):
        raise ModelError(
            f"train: {trains}: the adapter on a table that holds the rows of tags cannot be merged into "
            "it; leave the table out of adapter.keys"
        )
    merge_adapter(model)
    mark_replaced(model, {f"{name}.weight" for name in layers})


def _check_dense(model: nn.Module, trains: Trains) -> None:
    if any(map(is_quantized_layer, model.modules())):
        raise ModelError(
            f"train: {trains}: this model is quantized, so its own weights cannot be changed; name the "
            "model that it was made from, and quantize the fused model (fuse.quantize)"
        )
