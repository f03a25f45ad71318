"""Training of the rows of tags alone: the tables stay frozen, and a small array stands for the tags' rows.

A table with V rows gets a parameter `tag_rows`, (n, D), in place of its own rows of the n tags. It is
looked up for their ids, and gives their logits; all else comes from the frozen table. So the rows of
tags are the only ones with a gradient, and no gradient of the table's size exists. They are kept in
fp32, where small steps are not rounded away, and computed with in the model's precision.

Axes: V vocabulary, D width of the model, n tags.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from forty2.errors import ModelError
from forty2.model.tags import find_tables
from forty2.recipe.saved_adapter import TAG_ROWS
from forty2.recipe.tags import AddedTags


class _TagTable(nn.Module):
    """A table whose rows of the tags are a parameter of their own."""

    weight: mx.array
    tag_rows: mx.array
    tags: AddedTags

    def _with_tags(self, logits: mx.array, states: mx.array) -> mx.array:
        """Replace the tags' logits (..., V) by those of their own rows."""
        own = states @ self.tag_rows.astype(states.dtype).T
        first, end = self.tags.first, self.tags.end
        if "bias" in self:
            own = own + self.bias[first:end]
        return mx.concatenate([logits[..., :first], own, logits[..., end:]], axis=-1)


class _TaggedEmbedding(_TagTable, nn.Embedding):
    def __call__(self, x: mx.array) -> mx.array:
        place = x.astype(mx.int32) - self.tags.first
        last = len(self.tags.tokens) - 1
        own = self.tag_rows[mx.clip(place, 0, last)].astype(self.weight.dtype)
        is_tag = (place >= 0) & (place <= last)
        others: mx.array = nn.Embedding.__call__(self, x)
        return mx.where(is_tag[..., None], own, others)

    def as_linear(self, x: mx.array) -> mx.array:
        logits: mx.array = nn.Embedding.as_linear(self, x)
        return self._with_tags(logits, x)


class _TaggedLinear(_TagTable, nn.Linear):
    def __call__(self, x: mx.array) -> mx.array:
        return self._with_tags(super().__call__(x), x)


_PLAIN: Mapping[type, type] = {_TaggedEmbedding: nn.Embedding, _TaggedLinear: nn.Linear}
_TAGGED: Mapping[type, type] = {plain: tagged for tagged, plain in _PLAIN.items()}


def train_tag_rows(model: nn.Module, tags: AddedTags) -> None:
    """Make the tags' rows of a frozen model trainable; its output does not change.

    Raises:
        ModelError: its tables cannot be found, or compute in a way of their own.
    """
    for table in find_tables(model):
        if type(table) not in _TAGGED:
            raise ModelError(
                f"tags: this model's table is a {type(table).__name__}, of which single rows cannot be "
                "trained; use another model, or remove tags"
            )
        rows = table.weight[tags.first : tags.end].astype(mx.float32)
        table.__class__ = _TAGGED[type(table)]
        table.tags = tags
        table.tag_rows = rows


def tagged_tables(model: nn.Module) -> list[nn.Module]:
    """Return the tables whose rows of the tags are trained."""
    return [module for module in model.modules() if isinstance(module, _TagTable)]


def head_table(model: nn.Module) -> nn.Module | None:
    """Return the table whose rows of the tags give their logits; None: there are no tags."""
    tables = tagged_tables(model)
    return next((t for t in tables if isinstance(t, nn.Linear)), tables[0] if tables else None)


@contextlib.contextmanager
def with_tag_rows(table: nn.Module, rows: mx.array) -> Iterator[None]:
    """Use these rows (n, D) in a table, until the end of the block."""
    own = table.tag_rows
    table.tag_rows = rows
    try:
        yield
    finally:
        table.tag_rows = own


def tags_of(model: nn.Module) -> AddedTags | None:
    """Return the tags whose rows are trained; None: there are none."""
    found = tagged_tables(model)
    return found[0].tags if found else None


def tag_weights(model: nn.Module) -> dict[str, mx.array]:
    """Return the trained rows of tags by the names of their parameters."""
    parameters = dict(tree_flatten(model.trainable_parameters()))
    return {name: value for name, value in parameters.items() if is_tag_rows(name)}


def is_tag_rows(name: str) -> bool:
    """Return whether a parameter is the rows of tags."""
    return name.rpartition(".")[2] == TAG_ROWS


@contextlib.contextmanager
def without_tag_rows(model: nn.Module) -> Iterator[None]:
    """Run the model with the rows that its tags began with, until the end of the block."""
    tables = tagged_tables(model)
    kinds = [type(table) for table in tables]
    for table, kind in zip(tables, kinds, strict=True):
        table.__class__ = _PLAIN[kind]
    try:
        yield
    finally:
        for table, kind in zip(tables, kinds, strict=True):
            table.__class__ = kind


def put_tag_rows(
    model: nn.Module, tags: AddedTags, arrays: Mapping[str, mx.array], file: Path, origin: str
) -> None:
    """Write saved rows of tags into the tables of a model that is only used.

    Args:
        arrays: contents of the file, by the names of `tag_weights`.
        origin: end of a message that says which model they were trained on.

    Raises:
        ModelError: they are not those of this model's tables.
    """
    names = {id(module): name for name, module in model.named_modules()}
    tables = {f"{names[id(table)]}.{TAG_ROWS}": table for table in find_tables(model)}
    shape = (len(tags.tokens), next(iter(tables.values())).weight.shape[1])
    if arrays.keys() != tables.keys() or any(a.shape != shape for a in arrays.values()):
        raise ModelError(
            f"{file}: does not hold {len(tags.tokens)} rows for each of {', '.join(tables)}, so it does "
            f"not fit this model{origin}"
        )
    for name, table in tables.items():
        if not mx.isfinite(arrays[name]).all().item():
            raise ModelError(f"{file}: {name} holds a value that is not finite")
        weight, rows = table.weight, arrays[name].astype(table.weight.dtype)
        table.weight = mx.concatenate([weight[: tags.first], rows, weight[tags.end :]])
