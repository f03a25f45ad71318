"""A language model taken apart: its blocks, and the head that turns their output into logits.

mlx-lm's models differ in what surrounds the blocks (embedding scales, soft caps, tied heads), so
nothing of that is written again here. To run one part alone, another is swapped for the length of
a call: the head alone is the whole model around a body that returns given states, the upper blocks
alone are the body with the lower ones passing given states on. mlx builds its graph lazily, so what
a swap cuts off is never computed. Whether a model comes apart so is tried, not guessed.

Axes: B sequences, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from forty2.model import cpu_kernels

cpu_kernels.install()


class BlockInput(NamedTuple):
    """States (B, T, D) at the door of block `depth`: what the blocks below it made of the ids."""

    states: mx.array
    depth: int


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout for a while; then in training or not, as before."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def body(
    model: nn.Module, ids: mx.array, *, cache: Any = None, entry: BlockInput | None = None
) -> mx.array:
    """Everything but the head: ids (B, T) to states (B, T, D).

    Args:
        entry: states to go on from; the blocks below are then not run.
    """
    place = _place(model)
    below = place.blocks[: entry.depth] if entry is not None else []
    with _blocks_as(place, [_Passing(block, entry.states) for block in below if entry]):
        states: mx.array = place.body(ids, cache=cache)
    return states


def head(model: nn.Module, states: mx.array) -> mx.array:
    """States (..., D), as `body` returns them, to logits (..., V)."""
    place = _place(model)
    flat = states.reshape(1, -1, states.shape[-1])
    dict.__setitem__(place.parent, place.name, _Passing(place.body, flat))
    try:
        logits: mx.array = model(mx.zeros((1, 1), mx.int32))
    finally:
        dict.__setitem__(place.parent, place.name, place.body)
    return logits.reshape(*states.shape[:-1], -1)


def compute_block_input(model: nn.Module, ids: mx.array, depth: int, cache: Any = None) -> mx.array:
    """The states (B, T, D) that block `depth` is given for ids (B, T)."""
    place = _place(model)
    recorder = _Recording(place.blocks[depth])
    with _blocks_as(place, [*place.blocks[:depth], recorder]):
        place.body(ids, cache=cache)
    assert recorder.states is not None
    return recorder.states


def frozen_depth(model: nn.Module) -> int:
    """How many blocks, from the first, hold nothing that is trained."""
    for depth, block in enumerate(blocks(model)):
        if tree_flatten(block.trainable_parameters()):
            return depth
    return len(blocks(model))


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """The model's blocks, in order."""
    found: Sequence[nn.Module] = model.layers
    return found


def sample_ids(model: nn.Module, *shape: int) -> mx.array:
    """Ids to try a model on, from all over its vocabulary: the first ones are control tokens."""
    width = model(mx.array([[0]])).shape[-1]  # lazy: nothing is computed
    ids: mx.array = (mx.arange(1, 1 + math.prod(shape)) * 7919) % width
    return ids.reshape(shape)


def in_fp32(model: nn.Module) -> bool:
    """Whether no weight has 16 bits, nor is scaled by one that has."""
    floats = (v for _, v in tree_flatten(model.parameters()) if mx.issubdtype(v.dtype, mx.floating))
    return all(v.dtype == mx.float32 for v in floats)


def scores_agree(model: nn.Module, one: mx.array, other: mx.array) -> bool:
    """Whether two ways of computing a model's scores agree, but for what its precision rounds.

    In fp32 score by score. In 16 bits sums in another order differ by tenths of a nat, which says
    nothing, and are held against the scores' spread: a wrong mask changes them by as much.
    """
    if in_fp32(model):
        return bool(mx.allclose(one, other, rtol=2e-2, atol=2e-2).item())
    one, other = one.astype(mx.float32), other.astype(mx.float32)
    return bool((mx.sqrt(mx.square(one - other).mean()) < 0.1 * mx.sqrt(mx.var(other))).item())


def can_split(model: nn.Module) -> bool:
    """Whether a head for some positions, and upper blocks after lower ones, are the whole model."""
    ids = sample_ids(model, 2, 3)
    try:
        whole = model(ids)
        depth = len(blocks(model)) // 2
        entry = BlockInput(compute_block_input(model, ids, depth), depth)
        return all(
            scores_agree(model, head(model, states[:, 1:]), whole[:, 1:])
            for states in (body(model, ids), body(model, ids, entry=entry))
        )
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, LookupError):
        return False


# --- how ---


class _Passing:
    """In a part's place: the same attributes, but given states come out whatever goes in."""

    def __init__(self, part: Any, states: mx.array) -> None:
        self._part, self._states = part, states

    def __call__(self, *_: Any, **__: Any) -> mx.array:
        return self._states

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


class _Recording:
    """Around a block: keeps what goes in."""

    def __init__(self, block: Any) -> None:
        self._block = block
        self.states: mx.array | None = None

    def __call__(self, states: mx.array, *args: Any, **kwargs: Any) -> Any:
        self.states = states
        return self._block(states, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)


class _Place(NamedTuple):
    """Where the body is."""

    parent: nn.Module
    """The module that calls it."""
    name: str
    body: Any
    blocks: list[Any]
    """The body's own list."""


def _place(model: nn.Module) -> _Place:
    first = blocks(model)[0]
    for _, parent in model.named_modules():
        for name, child in parent.children().items():
            for value in child.values() if isinstance(child, nn.Module) else ():
                if isinstance(value, list) and value and value[0] is first:
                    return _Place(parent, name, child, value)
    raise LookupError("no module of this model holds its blocks")


@contextmanager
def _blocks_as(place: _Place, first: list[Any]) -> Iterator[None]:
    """The body with its first blocks replaced, in place, for the length of a call."""
    kept = list(place.blocks)
    place.blocks[: len(first)] = first
    try:
        yield
    finally:
        place.blocks[:] = kept
