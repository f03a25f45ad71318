"""The loss of conversations and texts: cross-entropy on supervised tokens."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from forty2.inference.logprobs import (
    NO_SHORTCUTS,
    Shortcuts,
    at_positions,
    run_model,
    target_logps,
)
from forty2.inference.padding import positions
from forty2.model.kv_cache import segment_cache
from forty2.model.phase_attention import ORDER_PARAMETER, recorded_order
from forty2.model.surgery import BlockInput
from forty2.text.rows import Row
from forty2.training.batched_loss.base import BatchedLoss, LossSums
from forty2.training.batches import Batch, SftBatch, sft_batch
from forty2.training.frozen_states import FrozenStates


class ConversationLoss(BatchedLoss):
    """Cross-entropy, -Σ log p(token) over supervised tokens, in nats."""

    metrics: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        rows: Sequence[Row],
        shortcuts: Shortcuts = NO_SHORTCUTS,
        frozen: FrozenStates | None = None,
    ) -> None:
        super().__init__(rows, shortcuts, frozen)
        self.rows = rows

    def batch(self, indices: Sequence[int]) -> SftBatch:
        return sft_batch([self.rows[i] for i in indices], indices)

    def arrays(self, batch: Batch) -> list[mx.array]:
        """Convert a batch to ids (B, T), supervised positions (N,), and states and segments if any."""
        assert isinstance(batch, SftBatch)
        states = self._frozen.of_rows(batch) if self._frozen is not None else []
        segments = [mx.array(batch.segments)] if batch.segments is not None else []
        return [mx.array(batch.ids), mx.array(positions(batch.mask[:, 1:])), *states, *segments]

    def reaches_all(self, indices: Sequence[int]) -> bool:
        return any(any(self.rows[i].mask[2:]) for i in indices)

    def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> LossSums:
        ids, where, *rest = arrays
        states = BlockInput(rest.pop(0), self._frozen.depth) if self._frozen is not None else None
        cache = segment_cache(model, rest[0][:, :-1]) if rest else None
        inputs = ids[:, :-1]
        with recorded_order(model) as orders:
            output = run_model(model, inputs, self._shortcuts, cache=cache, block_input=states)
        total = -target_logps(model, output, ids[:, 1:], where, self._shortcuts).sum()
        metrics = {"loss": total}
        for order in orders:
            metrics[ORDER_PARAMETER] = at_positions(order, where).sum()
        return LossSums(total, metrics)
