"""The training step, for any loss: gradients summed over batches, divided, clipped, applied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from forty2.machine import on_gpu
from forty2.model.phase_attention import order_metric
from forty2.training.batched_loss import BatchedLoss
from forty2.training.batches import Batch
from forty2.training.objectives.phase import Phase
from forty2.training.processes import ALONE, Group

CACHE_BYTES = 2 << 30
"""Freed buffers that mlx may hold for reuse: after steps of many shapes few would fit again."""

Tree = Any
"""Nested dicts and lists of arrays: mlx's parameters, gradients and optimizer states."""
P = ParamSpec("P")
R = TypeVar("R")


class StepResult(NamedTuple):
    """The measurements of an optimizer step, over all its batches."""

    metrics: dict[str, float]
    """Means over supervised tokens or rows."""
    loss: float
    """The mean loss, in fp32; compared with the limit."""
    norm: float
    """Global norm of the gradient before clipping."""
    tokens: int
    """Tokens without padding."""
    squares: dict[str, mx.array]
    """Squared norm of each tensor's gradient before clipping, by name; scalars, not read back."""


class BatchSums(NamedTuple):
    """Sums over the batches of a step, to be divided by their weight."""

    gradients: Tree
    """Summed gradients; None in a process that has no batch of the step."""
    loss: mx.array
    """Scalar, fp32."""
    metrics: list[dict[str, mx.array]]
    """Scalars; one dict a batch."""
    weight: float
    """Supervised tokens, or the sum of their weights, or rows."""
    tokens: int
    """Tokens without padding."""


class Stepper:
    """Takes the optimizer steps of a phase.

    On a GPU both halves of a step are compiled, once for each shape of a batch; nothing is read
    back before the step's end.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        loss: BatchedLoss,
        phase: Phase,
        group: Group = ALONE,
    ) -> None:
        """Prepare the optimizer for the model's trainable parameters.

        Args:
            optimizer: new, or as a checkpoint left it.
            group: processes that share each step; some may have no batch of it.
        """
        optimizer.init(model.trainable_parameters())  # does not change a restored state
        self.shapes: set[tuple[object, ...]] = set()
        """Shapes of the batches so far; on a GPU each one cost a compilation."""
        self._model, self._optimizer, self._loss, self._group = model, optimizer, loss, group
        state = [model.state, optimizer.state, mx.random.state]
        self._add_gradients = _compiled(_gradient_function(model, loss), state)
        self._update = _compiled(_update_function(model, optimizer, phase.clip_norm), state)

    def step(
        self,
        batches: Sequence[Batch],
        rate: float,
        limit: float = math.inf,
        *,
        progress: float = 1.0,
    ) -> StepResult:
        """Take one step.

        A step whose loss or gradient is not finite, or whose mean loss is beyond `limit`, changes
        neither the model nor the optimizer.

        Args:
            batches: this process's share of the step.
            rate: learning rate.
            limit: largest mean loss, in nats for the losses that are log-likelihoods.
            progress: share of the phase that is done: 0 at its first step, 1 at its last.
        """
        self._optimizer.learning_rate = mx.array(rate)
        sums = self._sum_over_processes(self._sum_batches(batches, progress))
        loss = sums.loss / sums.weight
        norm, squares = self._update(sums.gradients, mx.array(sums.weight), loss, mx.array(limit))
        changed = [self._model.trainable_parameters(), self._optimizer.state]
        mx.eval([*changed, squares, norm, loss, sums.metrics])
        if mx.get_cache_memory() > CACHE_BYTES:
            mx.clear_cache()
        means = {
            name: sum(float(batch[name]) for batch in sums.metrics) / sums.weight
            for name in sums.metrics[0]
        }
        return StepResult(means, float(loss), float(norm), sums.tokens, squares)

    def _sum_batches(self, batches: Sequence[Batch], progress: float) -> BatchSums:
        gradients, loss, metrics = None, mx.array(0.0), []
        step_arrays = self._loss.step_arrays(self._model, batches, self._group, progress)
        for batch in batches:
            arrays = [*self._loss.arrays(batch), *step_arrays]
            self.shapes.add((gradients is None, *(array.shape for array in arrays)))
            batch_loss, batch_metrics, gradients = self._add_gradients(arrays, gradients)
            metrics.append(batch_metrics)
            loss = loss + batch_loss
            mx.async_eval(batch_metrics, gradients)
        weight = sum((batch.weight for batch in batches), 0.0)
        return BatchSums(gradients, loss, metrics, weight, sum(batch.tokens for batch in batches))

    def _sum_over_processes(self, own: BatchSums) -> BatchSums:
        if self._group.size == 1:
            return own
        gradients, zero = own.gradients, mx.array(0.0)
        if gradients is None:
            gradients = tree_map(mx.zeros_like, self._model.trainable_parameters())
        names = self._loss.metrics + order_metric(self._model)
        metrics = {name: sum((batch[name] for batch in own.metrics), zero) for name in names}
        whole = self._group.all_sum([gradients, own.loss, own.weight, own.tokens, metrics])
        return BatchSums(whole[0], whole[1], [whole[4]], float(whole[2]), int(whole[3]))


def _compiled(function: Callable[P, R], state: list[Tree]) -> Callable[P, R]:
    """Compile a function that reads and changes `state`, on a GPU.

    On the CPU it would save nothing (matrix products take the time) and needs a C++ compiler.
    """
    if not on_gpu():
        return function
    return mx.compile(function, inputs=state, outputs=state)


def _gradient_function(
    model: nn.Module, loss: BatchedLoss
) -> Callable[[list[mx.array], Tree], tuple[mx.array, dict[str, mx.array], Tree]]:
    """Make the first half of a step: compute a batch's loss, and add its gradients to the sums."""
    loss_and_gradients = nn.value_and_grad(
        model, lambda model, arrays: tuple(loss.loss(model, arrays))
    )

    def add_gradients(
        arrays: list[mx.array], sums: Tree
    ) -> tuple[mx.array, dict[str, mx.array], Tree]:
        (total, metrics), gradients = loss_and_gradients(model, arrays)
        if sums is not None:
            gradients = tree_map(mx.add, sums, gradients)
        return total, metrics, gradients

    return add_gradients


def _update_function(
    model: nn.Module, optimizer: optim.Optimizer, clip_norm: float | None
) -> Callable[[Tree, mx.array, mx.array, mx.array], tuple[mx.array, dict[str, mx.array]]]:
    """Make the second half of a step: clip and apply the mean gradient.

    It returns the gradient's norm, and the squared norm of each tensor's part by name.
    """

    def update(
        sums: Tree, weight: mx.array, loss: mx.array, limit: mx.array
    ) -> tuple[mx.array, dict[str, mx.array]]:
        gradients = tree_map(lambda g: g / weight, sums)
        squares = {name: mx.square(g).sum() for name, g in tree_flatten(gradients)}
        norm = mx.sqrt(mx.stack([*squares.values()]).sum())
        good = mx.isfinite(norm) & (loss <= limit) & mx.isfinite(loss)
        if clip_norm is not None:
            factor = mx.minimum(1.0, clip_norm / (norm + 1e-6))
            gradients = tree_map(lambda g: g * factor, gradients)
        before = tree_map(lambda value: value, (model.trainable_parameters(), optimizer.state))
        optimizer.update(model, gradients)
        model.update(_where(good, model.trainable_parameters(), before[0]))
        _replace_arrays(optimizer.state, _where(good, optimizer.state, before[1]))
        return norm, squares

    return update


def _where(condition: mx.array, new: Tree, old: Tree) -> Tree:
    """Take all arrays of `new` or all of `old`, without reading the condition back."""
    return tree_map(lambda one, other: mx.where(condition, one, other), new, old)


def _replace_arrays(tree: Tree, values: Tree) -> None:
    """Replace a tree's arrays in place: a compiled step holds on to the tree's dicts and lists."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        if isinstance(tree[key], mx.array):
            tree[key] = values[key]
        else:
            _replace_arrays(tree[key], values[key])
