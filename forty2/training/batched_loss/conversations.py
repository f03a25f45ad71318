"""The loss of conversations and texts: cross-entropy on supervised tokens."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

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
from forty2.text.token_weights import NO_WEIGHTS, TokenWeights
from forty2.training.batched_loss.base import BatchedLoss, LossSums
from forty2.training.batches import Batch, SftBatch, sft_batch
from forty2.training.frozen_states import FrozenStates


class ConversationLoss(BatchedLoss):
    """Cross-entropy, -Σ w log p(token) over supervised tokens, in nats; w is 1 but for weighted tokens."""

    metrics: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        rows: Sequence[Row],
        shortcuts: Shortcuts = NO_SHORTCUTS,
        frozen: FrozenStates | None = None,
        token_weights: TokenWeights = NO_WEIGHTS,
    ) -> None:
        super().__init__(rows, shortcuts, frozen)
        self.rows, self._token_weights = rows, token_weights

    def batch(self, indices: Sequence[int]) -> SftBatch:
        batch = sft_batch([self.rows[i] for i in indices], indices)
        if not self._token_weights:
            return batch
        return batch._replace(weight=float(self._weights(batch).sum(dtype=np.float64)))

    def arrays(self, batch: Batch) -> list[mx.array]:
        """Convert a batch to ids (B, T), supervised positions (N,), and what else there is.

        That is: weights of the positions' tokens (N,), states, and segments.
        """
        assert isinstance(batch, SftBatch)
        states = self._frozen.of_rows(batch) if self._frozen is not None else []
        segments = [mx.array(batch.segments)] if batch.segments is not None else []
        weights = [mx.array(self._weights(batch))] if self._token_weights else []
        where = mx.array(positions(batch.mask[:, 1:]))
        return [mx.array(batch.ids), where, *weights, *states, *segments]

    def _weights(self, batch: SftBatch) -> npt.NDArray[np.float32]:
        """Return the weight of the token at each supervised position, (N,), 0 on padding."""
        where = positions(batch.mask[:, 1:])
        targets = batch.ids[:, 1:].reshape(-1)[np.maximum(where, 0)]
        weights = (where >= 0).astype(np.float32)
        for token, weight in self._token_weights.items():
            weights[targets == token] *= weight
        return weights

    def reaches_all(self, indices: Sequence[int]) -> bool:
        return any(any(self.rows[i].mask[2:]) for i in indices)

    def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> LossSums:
        ids, where, *rest = arrays
        weights = rest.pop(0) if self._token_weights else None
        states = BlockInput(rest.pop(0), self._frozen.depth) if self._frozen is not None else None
        cache = segment_cache(model, rest[0][:, :-1]) if rest else None
        inputs = ids[:, :-1]
        with recorded_order(model) as orders:
            output = run_model(model, inputs, self._shortcuts, cache=cache, block_input=states)
        logps = target_logps(model, output, ids[:, 1:], where, self._shortcuts)
        total = -(logps if weights is None else logps * weights).sum()
        metrics = {"loss": total}
        for order in orders:
            metrics[ORDER_PARAMETER] = at_positions(order, where).sum()
        return LossSums(total, metrics)
