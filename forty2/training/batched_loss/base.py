"""The interface between losses and the training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from forty2.files import JsonObject
from forty2.inference.logprobs import NO_SHORTCUTS, Shortcuts
from forty2.inference.padding import group_by_length
from forty2.training.batches import Batch, lengths_of, parts_of, weights_of
from forty2.training.frozen_states import FrozenStates
from forty2.training.processes import Group
from forty2.training.stored_states import Rows


class LossSums(NamedTuple):
    """Sums over a batch, to be divided by its weight."""

    total: mx.array
    """The loss; scalar, fp32, in nats for the losses that are log-likelihoods."""
    metrics: dict[str, mx.array]
    """Scalars, fp32."""


class BatchedLoss(ABC):
    """A phase's loss, ready for any batch of its rows."""

    metrics: tuple[str, ...]
    """Names of the metrics that `loss` returns; phase attention adds its `order_metric`."""

    def __init__(
        self,
        rows: Rows,
        shortcuts: Shortcuts = NO_SHORTCUTS,
        frozen: FrozenStates | None = None,
    ) -> None:
        """Take the rows of a phase.

        Args:
            shortcuts: optimisations that the model supports; none changes the numbers.
            frozen: stored states of the rows that come in a batch.
        """
        self.lengths = lengths_of(rows)
        """Tokens of each row."""
        self.weights = weights_of(rows)
        """Average uses of each row per epoch."""
        self.part_lengths = parts_of(rows)
        """(rows, 1 or 2) tokens of each part that is padded by itself."""
        self._shortcuts, self._frozen = shortcuts, frozen

    @property
    def shortcuts_taken(self) -> JsonObject:
        """The shortcuts taken, for the record of the phase."""
        return {
            "prompts_shared": self._shortcuts.shared_prompts,
            "head_where_supervised": self._shortcuts.split_head,
            "blocks_replayed": self._frozen.depth if self._frozen is not None else 0,
            "replayed_gb": round(self._frozen.bytes / 1e9, 3) if self._frozen is not None else 0.0,
        }

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> Batch:
        """Pad these rows into one batch."""

    @abstractmethod
    def arrays(self, batch: Batch) -> list[mx.array]:
        """Convert a batch to the arrays that `loss` reads, so that the step can be compiled."""

    @abstractmethod
    def reaches_all(self, indices: Sequence[int]) -> bool:
        """Return whether a batch of these rows has a gradient for every tensor that it should.

        It has not if no supervised token has two tokens before it, since the attention to a single
        token is 1 whatever its query and key; nor if the gradients of its rows cancel.
        """

    def step_arrays(
        self, model: nn.Module, batches: Iterable[Batch], group: Group, progress: float = 1.0
    ) -> list[mx.array]:
        """Compute the arrays that `loss` reads besides a batch's: the same for all rows of a step.

        Args:
            batches: this process's part of the step; measurements are summed over the group.
            progress: share of the phase that is done: 0 at its first step, 1 at its last and in
                evaluations.
        """
        return []

    @abstractmethod
    def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> LossSums:
        """Compute the loss and its metrics, differentiable with respect to the model."""


def micro_batches(loss: BatchedLoss, indices: Sequence[int]) -> Iterator[Batch]:
    """Cut rows into batches that are fast to compute; their sums are those of one large batch."""
    for group in group_by_length(loss.part_lengths[list(indices)]):
        yield loss.batch([indices[n] for n in group])
