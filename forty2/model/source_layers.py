"""The layers of a model's files that its own layers are made of.

mlx-lm builds some models in other pieces than their files have: it renames layers, joins the
projections of queries, keys and values, or cuts a joined one apart. Its `sanitize` does so with
weights, so it is run here on numbers that tell rows apart, and where they end up says what it does.
Nothing is computed for a layer that it only renames.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from forty2.errors import ModelError
from forty2.recipe.peft_adapter import tensor_shapes

_LEAF = ".weight"
_MOST_PARTS = 64
"""Most runs of rows of one layer; more are no joining or cutting, but another order of rows."""


class Part(NamedTuple):
    """Rows of a layer of the model's files."""

    source: str
    """Name of the layer in the files."""
    start: int
    """First row of its weight."""
    end: int
    """Row after the last."""
    of: int
    """Rows that the layer has in the files."""


class SourceLayers(NamedTuple):
    """Which layers of the files a model's layers are made of."""

    parts: Mapping[str, tuple[Part, ...]]
    """Parts of each layer of the model, in the order of its rows."""
    unknown: frozenset[str]
    """Layers of the model that are computed from the files in some other way."""


def source_layers(model: nn.Module, folder: Path) -> SourceLayers:
    """Find the layers of the files that each layer with a matrix is made of.

    Layers of which the files say nothing have the name there that they have in the model.

    Args:
        model: a model without adapter layers, or with them.
        folder: the model's folder.
    """
    shapes: dict[str, list[int]] = {}
    try:
        for file in sorted(folder.glob("model*.safetensors")):
            shapes |= tensor_shapes(file)
    except ModelError:  # single numbers among the tensors, as of packed weights
        return SourceLayers({}, frozenset())
    given, starts, next_row = {}, {}, 0
    for name, shape in shapes.items():
        rows = mx.arange(next_row, next_row + shape[0], dtype=mx.int32)
        given[name] = mx.broadcast_to(rows.reshape(-1, *[1] * (len(shape) - 1)), shape)
        starts[name] = next_row
        next_row += shape[0] + 1  # a gap, so that rows of two layers are never one run
    by_array = {id(array): name for name, array in given.items()}
    found = _sanitize(model, given)
    tracer = _Tracer(shapes, starts)
    parts: dict[str, tuple[Part, ...]] = {}
    unknown = set()
    for name, array in found.items():
        layer = name.removesuffix(_LEAF)
        if not name.endswith(_LEAF):
            continue
        source = by_array.get(id(array))
        if source is not None and source.endswith(_LEAF):
            count = shapes[source][0]
            parts[layer] = (Part(source.removesuffix(_LEAF), 0, count, count),)
        elif (traced := tracer.trace(array)) is not None:
            parts[layer] = traced
        else:
            unknown.add(layer)
    return SourceLayers(parts, frozenset(unknown))


def _sanitize(model: nn.Module, weights: dict[str, mx.array]) -> Mapping[str, mx.array]:
    """Give weights the names and the form that the model's layers have."""
    if not hasattr(model, "sanitize"):
        return weights
    try:
        found: Mapping[str, mx.array] = model.sanitize(dict(weights))
    except Exception:  # some compute with the values of packed weights, which these are not
        return weights
    return found


class _Tracer:
    """Finds the rows of the files in the rows of an array."""

    def __init__(self, shapes: Mapping[str, list[int]], starts: Mapping[str, int]) -> None:
        self.names = [name for name in shapes if name.endswith(_LEAF)]
        self.shapes = shapes
        self.starts = starts

    def trace(self, array: mx.array) -> tuple[Part, ...] | None:
        """Return the parts that an array is made of; None: it is not made of whole rows."""
        if array.ndim != 2 or array.dtype != mx.int32:
            return None
        first, last = np.asarray(array[:, 0]), np.asarray(array[:, -1])
        if not np.array_equal(first, last):
            return None
        parts = [self._part(start, end, array.shape[1]) for start, end in _runs(first)]
        if len(parts) > _MOST_PARTS or None in parts:
            return None
        return tuple(part for part in parts if part is not None)

    def _part(self, start: int, end: int, width: int) -> Part | None:
        """Return the part of consecutive rows; None: they are not of one matrix of this width."""
        for name in self.names:
            shape, at = self.shapes[name], self.starts[name]
            if at <= start < at + shape[0]:
                if len(shape) != 2 or shape[1] != width or end > at + shape[0]:
                    return None
                return Part(name.removesuffix(_LEAF), start - at, end - at, shape[0])
        return None


def _runs(rows: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Yield first and end of each run of consecutive numbers."""
    begins = np.flatnonzero(np.diff(rows, prepend=rows[0] - 2) != 1)
    for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
        yield int(rows[begin]), int(rows[end - 1]) + 1


def power_of_two(ratio: float) -> bool:
    """Return whether a product with this factor is exact in floating point."""
    return ratio > 0 and math.frexp(ratio)[0] == 0.5
