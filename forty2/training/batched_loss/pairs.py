"""The losses of preference pairs: those of a `PairPhase`, with or without a reference."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from forty2.inference.logprobs import NO_SHORTCUTS, Shortcuts
from forty2.inference.padding import PairBatch
from forty2.model.phase_attention import ORDER_PARAMETER
from forty2.text.rows import PairRow
from forty2.training.batched_loss.base import LossSums
from forty2.training.batched_loss.responses import (
    KL_TERM,
    KlPenalty,
    ResponseLoss,
    kl_per_token,
    won,
)
from forty2.training.frozen_states import FrozenStates
from forty2.training.losses import PairLogps
from forty2.training.objectives.pairs import PairPhase
from forty2.training.reference import TokenLogps

NEED_REFERENCE = ("kl",)
"""Metrics that are left out where there is no reference."""


class PairLoss(ResponseLoss):
    """The loss of a phase over preference pairs: DPO and its kin."""

    def __init__(
        self,
        rows: Sequence[PairRow],
        reference: TokenLogps | None,
        phase: PairPhase,
        shortcuts: Shortcuts = NO_SHORTCUTS,
        frozen: FrozenStates | None = None,
        kl: KlPenalty | None = None,
    ) -> None:
        super().__init__(rows, reference, shortcuts, frozen, kl)
        self.phase, self.name, self.start_slack = phase, phase.loss_name, phase.start_slack
        missing = NEED_REFERENCE if reference is None else ()
        self.metrics = tuple(name for name in phase.metrics if name not in missing)
        self.metrics += (KL_TERM,) if kl is not None else ()

    def loss_at_start(self, batch: PairBatch) -> float:
        found = self.phase.initial_loss()
        if self.phase.sft_weight:
            assert self.reference is not None
            nll = [
                -self.reference[index][: len(self.rows[index].responses[0])].sum()
                / sum(self.rows[index].response_masks[0])
                for index in batch.rows.tolist()
            ]
            found += self.phase.sft_weight * sum(map(float, nll)) / len(nll)
        return found

    def pulls(self, index: int) -> tuple[float, ...]:
        return 1.0, -1.0

    def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> LossSums:
        policy, reference, mask, kl, order = self.logps(model, arrays)
        chosen_logps, rejected_logps = mx.split(policy.sum(axis=-1), 2)
        weights = _shared_length_weights(mask, self.phase.length_desensitise)
        # Means count each token by its weight: else a longer response would have the higher mean.
        tokens = mx.split(mx.where(mask, weights, 0.0).sum(axis=-1), 2)
        sums = [(logps * weights).sum(axis=-1) for logps in (policy, reference)]
        logps = PairLogps(*mx.split(sums[0], 2), *mx.split(sums[1], 2))
        losses = self.phase.losses(logps, *tokens)
        if self.phase.sft_weight:
            chosen_tokens = mx.split(mask.sum(axis=-1), 2)[0]
            losses = losses - self.phase.sft_weight * chosen_logps / chosen_tokens
        if kl is not None:
            kl = kl.reshape(2, -1).mean(axis=0)
            losses = losses + arrays[-1] * kl
        total = losses.sum()
        chosen, rejected = self.phase.rewards(logps, *tokens)
        metrics = {
            "loss": total,
            "chosen_logps": chosen_logps.sum(),
            "rejected_logps": rejected_logps.sum(),
            "chosen_rewards": chosen.sum(),
            "rejected_rewards": rejected.sum(),
            "margin": (chosen - rejected).sum(),
            "accuracy": won(chosen - rejected).sum(),
            "kl": 0.5 * kl_per_token(policy, reference, mask).sum(),
        }
        if kl is not None:
            metrics[KL_TERM] = kl.sum()
        metrics = {name: metrics[name] for name in self.metrics}
        if order is not None:
            metrics[ORDER_PARAMETER] = 0.5 * order.sum()
        return LossSums(total, metrics)


def _shared_length_weights(mask: mx.array, beyond: float) -> mx.array:
    """Weigh the tokens of each response: 1 up to the length of the shorter of the two, then `beyond`.

    LD-DPO, Liu et al. 2024 (arXiv:2409.06411).

    Args:
        mask: supervised tokens, (2B, T), all chosen responses before all rejected ones.
    """
    lengths = mask.sum(axis=-1).reshape(2, -1)
    shared = mx.concatenate([lengths.min(axis=0)] * 2)[:, None]
    place = mx.cumsum(mask.astype(mx.int32), axis=-1)
    return mx.where(place <= shared, 1.0, beyond)
