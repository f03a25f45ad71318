"""The adapter with which a run's first phase begins: a new one, or the one that `init_from` names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NoReturn

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.lora import LoRAEmbedding

from forty2.errors import ModelError
from forty2.model.adapter import attach_adapter, load_arrays, lora_weights, origin_of
from forty2.model.loading import other_base
from forty2.model.phase_parameters import set_trained
from forty2.model.surgery import blocks, has_tied_head, trained_outside_blocks
from forty2.model.tag_rows import tag_weights, tags_of
from forty2.recipe.saved_adapter import AdapterFile, is_of_phases, read_adapter_file
from forty2.recipe.schema import Recipe
from forty2.recipe.tags import AddedTags


def attach_initial_adapter(
    model: nn.Module, recipe: Recipe, *, seed: int, tags: AddedTags | None = None
) -> AdapterFile | None:
    """Add what the first phase begins with: an adapter, unless it trains weights of the model itself.

    Args:
        tags: the recipe's tags, which the model has already; None: it has none.

    Returns:
        The adapter of `init_from`; None: there is none.

    Raises:
        ModelError: the model does not have the layers, or the adapter of `init_from` has others, or
            a phase has a term λ·KL and its head would be trained.
    """
    file = read_adapter_file(recipe.init_from) if recipe.init_from is not None else None
    first = recipe.trained_in(next(iter(recipe.phases)))
    try:
        if file is not None:
            attach_adapter(model, recipe.adapter, seed=seed, tags=tags)
        else:
            set_trained(model, first, recipe.adapter, seed=seed, tags=tags)
    except ModelError as error:
        if file is None:
            raise
        # the file's layers or keys, which the recipe's section took over
        raise ModelError(f"{error} (as in {file.folder}{origin_of(file.folder)})") from error
    if file is not None:
        _fill(model, file)
        if file.tags is not None:
            _fill_tags(model, file, tags)
        set_trained(model, first, recipe.adapter, seed=seed, tags=tags)
    for name in recipe.phases if first in ("lora", "dora") else [next(iter(recipe.phases))]:
        _check_kl(model, recipe, name)
    return file


def begin_phase(
    model: nn.Module, recipe: Recipe, name: str, *, seed: int, tags: AddedTags | None
) -> None:
    """Make what a phase trains trainable, on the model that the phase before left; see `set_trained`.

    Raises:
        ModelError: the model cannot train it.
    """
    try:
        set_trained(model, recipe.trained_in(name), recipe.adapter, seed=seed, tags=tags)
    except ModelError as error:
        raise ModelError(f"phases.{name}: {error}") from error
    _check_kl(model, recipe, name)


def _check_kl(model: nn.Module, recipe: Recipe, name: str) -> None:
    """Refuse a phase with a term λ·KL that trains the head."""
    if recipe.phases[name].kl_term is None:
        return
    if tags_of(model) is not None:
        raise ModelError(
            f"phases.{name}.kl: the reference's probabilities are computed with the model's own "
            "head, whose rows of tags are trained; remove kl, or tags"
        )
    if trained_outside_blocks(model):
        raise ModelError(
            f"phases.{name}.kl: the reference's probabilities are computed with the model's own "
            "head, which the adapter would change; name only layers of the blocks in "
            "adapter.keys, or remove kl"
        )


def warn_of_other_base(model: Path, file: AdapterFile) -> None:
    """Warn if the adapter was trained on other weights than those of a model folder."""
    message = other_base(model, file.folder)
    if message is not None:
        warnings.warn(message, stacklevel=3)


def _fill(model: nn.Module, file: AdapterFile) -> None:
    """Replace the values of a new adapter by those of a file, which must be of the same shape."""
    wanted = lora_weights(model)
    origin = origin_of(file.folder)
    if file.transposed:
        _check_tied(model, file, origin)
    strange = [name for name in file.tensors if name not in wanted]
    if strange:
        _refuse_strange(model, file, strange[0], origin)
    missing = [
        name
        for name in wanted
        if name not in file.tensors
        and (file.phase_attention is not None or not is_of_phases(name))  # else it is new
    ]
    if missing:
        raise ModelError(
            f"{file.weights}: lacks {missing[0]}; all blocks must have an adapter on the same layers"
            f"{origin}"
        )
    arrays = load_arrays(file.weights)
    filled = []
    for name, stored in file.tensors.items():
        value = arrays[stored]
        if file.transposed and value.ndim > 1:  # DoRA's norms have one axis
            value = value.swapaxes(-1, -2)
        if value.shape != wanted[name].shape:
            raise ModelError(
                f"{file.weights}: {stored} is {tuple(value.shape)}, but this model's layer needs "
                f"{tuple(wanted[name].shape)}{origin or '; was it trained on another model?'}"
            )
        value = value.astype(wanted[name].dtype)
        if not mx.isfinite(value).all().item():
            raise ModelError(f"{file.weights}: {stored} holds a value that is not finite")
        filled.append((name, value))
    model.load_weights(filled, strict=False)


def _check_tied(model: nn.Module, file: AdapterFile, origin: str) -> None:
    """Refuse PEFT's adapter of a table that is the head as well: PEFT changes one of the two uses."""
    tables = [name for name, m in model.named_modules() if isinstance(m, LoRAEmbedding)]
    if tables and has_tied_head(model):
        raise ModelError(
            f"{file.folder}: changes {tables[0]}, and this model has one table for the embeddings and the "
            "head, which PEFT adapts apart; merge the adapter into its base with PEFT (an untied model), "
            f"and name the result as the recipe's model, without init_from{origin}"
        )


def _fill_tags(model: nn.Module, file: AdapterFile, tags: AddedTags | None) -> None:
    """Replace the rows that tags begin with by those of an adapter."""
    weights, wanted = file.tag_file, tag_weights(model)
    arrays = load_arrays(weights)
    if file.tag_rows:
        arrays = {name: arrays[stored] for name, stored in file.tag_rows.items()}
    shapes = {name: value.shape for name, value in arrays.items()}
    if file.tags != tags or shapes != {name: value.shape for name, value in wanted.items()}:
        raise ModelError(
            f"{weights}: holds the tags' rows of another model, with other ids or another width"
            f"{origin_of(file.folder)}"
        )
    for name, value in arrays.items():
        if not mx.isfinite(value).all().item():
            raise ModelError(f"{weights}: {name} holds a value that is not finite")
    model.load_weights([(n, value.astype(mx.float32)) for n, value in arrays.items()], strict=False)


def _refuse_strange(model: nn.Module, file: AdapterFile, name: str, origin: str) -> NoReturn:
    """Refuse a tensor that is no part of the new adapter: of other blocks, or of no layer at all."""
    stored = file.tensors[name]
    if name.rpartition(".")[0] in dict(model.named_modules()):
        raise ModelError(
            f"{file.weights}: holds {stored}, but an adapter on {file.layers or 0} of the model's "
            f"{len(blocks(model))} blocks can be trained on only if they are the last ones; merge it "
            "into its base with the package that made it (in PEFT: merge_and_unload, then "
            "save_pretrained), and name the result as the recipe's model, without init_from"
        )
    raise ModelError(
        f"{file.weights}: holds {stored}, which is no layer of this model"
        f"{origin or '; was it trained on another model?'}"
    )
