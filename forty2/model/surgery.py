"""A language model in parts: its blocks, and the head that turns their output into logits.

mlx-lm's models differ in the code around the blocks (embedding scales, soft caps, tied heads), and
this module repeats none of it. To run one part alone, it replaces another part during a call. To run
the head, it calls the whole model with a body that returns the given states. To run the upper blocks,
it calls the body with lower blocks that return the given states. mlx builds its graph lazily, so the
replaced parts are never computed. Whether a model can be split like this is tried, not guessed.

Axes: B sequences, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


class BlockInput(NamedTuple):
    """States (B, T, D) at the entry of block `depth`, as the blocks before it computed them."""

    states: mx.array
    depth: int


@contextmanager
def evaluating(model: nn.Module, *, restore_random: bool = False) -> Iterator[None]:
    """Switch dropout off during the block, then put the model back into the mode that it was in.

    Args:
        restore_random: restore mlx's random state at the end. Blocks that checkpoint gradients draw
            from it even without dropout, and a benchmark must not change later training.
    """
    training = model.training
    state = mx.random.state[0].tolist() if restore_random else None  # type: ignore[index]
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        if state is not None:
            high, low = state
            mx.random.seed(high << 32 | low)


def body(
    model: nn.Module,
    ids: mx.array,
    *,
    cache: Sequence[object] | None = None,
    block_input: BlockInput | None = None,
) -> mx.array:
    """Run everything but the head: ids (B, T) to states (B, T, D).

    Args:
        cache: one entry for each block, in mlx-lm's cache protocol.
        block_input: stored states to go on from; the blocks before them are then not run.
    """
    place = _find_body(model)
    first: list[Callable[..., object]] = []
    if block_input is not None:
        lower = place.blocks[: block_input.depth]
        first += [_Constant(block, block_input.states) for block in lower]
    with _replace_first_blocks(place, first):
        states: mx.array = place.body(ids, cache=cache)
    return states


def head(model: nn.Module, states: mx.array) -> mx.array:
    """Run the head alone: states (..., D), as `body` returns them, to logits (..., V)."""
    place = _find_body(model)
    flat = states.reshape(1, -1, states.shape[-1])
    dict.__setitem__(place.parent, place.name, _Constant(place.body, flat))
    try:
        logits: mx.array = model(mx.zeros((1, 1), mx.int32))
    finally:
        dict.__setitem__(place.parent, place.name, place.body)
    return logits.reshape(*states.shape[:-1], -1)


def compute_block_input(
    model: nn.Module, ids: mx.array, depth: int, cache: Sequence[object] | None = None
) -> mx.array:
    """Compute the states (B, T, D) at the entry of block `depth` from ids (B, T)."""
    place = _find_body(model)
    recorder = _InputRecorder(place.blocks[depth])
    with _replace_first_blocks(place, [*place.blocks[:depth], recorder]):
        place.body(ids, cache=cache)
    assert recorder.states is not None
    return recorder.states


def frozen_depth(model: nn.Module) -> int:
    """Count the blocks, from the first, whose outputs training does not change.

    A trained embedding changes the inputs of all blocks, so then there are none.
    """
    if trained_outside_blocks(model):
        return 0
    for depth, block in enumerate(blocks(model)):
        if tree_flatten(block.trainable_parameters()):
            return depth
    return len(blocks(model))


def trained_outside_blocks(model: nn.Module) -> list[str]:
    """List the names of the trained parameters that are in none of the blocks: of embeddings, or the head."""
    inside = {
        id(value)
        for block in blocks(model)
        for _, value in tree_flatten(block.trainable_parameters())
    }
    trained = tree_flatten(model.trainable_parameters())
    return [name for name, value in trained if id(value) not in inside]


def has_tied_head(model: nn.Module) -> bool:
    """Return whether a model has no head of its own, but uses its table of embeddings."""
    rows = model(mx.array([[0]])).shape[-1]  # lazy: nothing is computed
    heads = [
        m for m in modules_outside_blocks(model) if isinstance(m, nn.Linear | nn.QuantizedLinear)
    ]
    return not any(head.weight.shape[0] == rows for head in heads)


def modules_outside_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are in no block: tables, final norm and head, and what holds them."""
    inside = {id(module) for block in blocks(model) for module in block.modules()}
    return [module for module in model.modules() if id(module) not in inside]


def blocks(model: nn.Module) -> Sequence[nn.Module]:
    """Return the model's blocks, in order."""
    found: Sequence[nn.Module] = model.layers
    return found


def sample_ids(model: nn.Module, *shape: int) -> mx.array:
    """Make ids to try a model on, from its whole vocabulary, because the first are control tokens."""
    width = model(mx.array([[0]])).shape[-1]  # lazy: nothing is computed
    ids: mx.array = (mx.arange(1, 1 + math.prod(shape)) * 7919) % width
    return ids.reshape(shape)


def in_fp32(model: nn.Module) -> bool:
    """Return whether all weights and their scales are fp32."""
    floats = (v for _, v in tree_flatten(model.parameters()) if mx.issubdtype(v.dtype, mx.floating))
    return all(v.dtype == mx.float32 for v in floats)


def scores_agree(model: nn.Module, one: mx.array, other: mx.array) -> bool:
    """Return whether two computations of a model's scores agree within the rounding of its precision.

    In fp32, scores are compared one by one. In 16 bits, summing in another order alone changes them
    by tenths of a nat. So the root mean square difference must be below a tenth of the scores'
    standard deviation; a wrong mask changes scores by as much as that deviation.
    """
    if in_fp32(model):
        return bool(mx.allclose(one, other, rtol=2e-2, atol=2e-2).item())
    one, other = one.astype(mx.float32), other.astype(mx.float32)
    return bool((mx.sqrt(mx.square(one - other).mean()) < 0.1 * mx.sqrt(mx.var(other))).item())


def can_split(model: nn.Module) -> bool:
    """Return whether body, upper blocks and head, run one after the other, give the model's logits."""
    ids = sample_ids(model, 2, 3)
    try:
        whole = model(ids)
        depth = len(blocks(model)) // 2
        block_input = BlockInput(compute_block_input(model, ids, depth), depth)
        return all(
            scores_agree(model, head(model, states[:, 1:]), whole[:, 1:])
            for states in (body(model, ids), body(model, ids, block_input=block_input))
        )
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, LookupError):
        return False


# --- replacing parts ---


class _Constant:
    """Stand-in for a part: has its attributes, and returns the same states for any arguments."""

    def __init__(self, part: Callable[..., object], states: mx.array) -> None:
        self._part, self._states = part, states

    def __call__(self, *_: object, **__: object) -> mx.array:
        return self._states

    def __getattr__(self, name: str) -> object:
        return getattr(self._part, name)


class _InputRecorder:
    """Wrapper of a block that records the states passed to it."""

    def __init__(self, block: Callable[..., object]) -> None:
        self._block = block
        self.states: mx.array | None = None

    def __call__(self, states: mx.array, *args: object, **kwargs: object) -> object:
        self.states = states
        return self._block(states, *args, **kwargs)

    def __getattr__(self, name: str) -> object:
        return getattr(self._block, name)


class _BodyPlace(NamedTuple):
    """The place of the body in a model."""

    parent: nn.Module
    """Module that calls the body."""
    name: str
    """Name of the body's attribute in the parent."""
    body: nn.Module
    blocks: list[Callable[..., object]]
    """The body's own list of blocks, whose items are replaced during a call."""


def _find_body(model: nn.Module) -> _BodyPlace:
    """Find the module that holds the model's blocks.

    Raises:
        LookupError: no module does.
    """
    first = blocks(model)[0]
    for _, parent in model.named_modules():
        for name, child in parent.children().items():
            for value in child.values() if isinstance(child, nn.Module) else ():
                if isinstance(value, list) and value and value[0] is first:
                    return _BodyPlace(parent, name, child, value)
    raise LookupError("no module of this model holds its blocks")


@contextmanager
def _replace_first_blocks(
    place: _BodyPlace, first: Sequence[Callable[..., object]]
) -> Iterator[None]:
    """Replace the body's first blocks, in place, until the `with` block ends."""
    original = list(place.blocks)
    place.blocks[: len(first)] = first
    try:
        yield
    finally:
        place.blocks[:] = original
