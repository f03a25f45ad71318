"""The losses of preference pairs: those of a `PairPhase`, with or without a reference."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from forty2.inference.logprobs import NO_SHORTCUTS, Shortcuts
from forty2.inference.padding import PairBatch
from forty2.text.rows import PairRow
from forty2.training.batched_loss.base import LossSums
from forty2.training.batched_loss.responses import ResponseLoss, kl_per_token
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
    ) -> None:
        super().__init__(rows, reference, shortcuts, frozen)
        self.phase, self.name, self.start_slack = phase, phase.loss_name, phase.start_slack
        missing = NEED_REFERENCE if reference is None else ()
        self.metrics = tuple(name for name in phase.metrics if name not in missing)

    def loss_at_start(self, batch: PairBatch) -> float:
        return self.phase.initial_loss()

    def pulls(self, index: int) -> tuple[float, ...]:
        return 1.0, -1.0

    def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> LossSums:
        policy, reference, mask = self.logps(model, arrays)
        chosen_logps, rejected_logps = mx.split(policy.sum(axis=-1), 2)
        logps = PairLogps(chosen_logps, rejected_logps, *mx.split(reference.sum(axis=-1), 2))
        tokens = mx.split(mask.sum(axis=-1), 2)
        total = self.phase.losses(logps, *tokens).sum()
        chosen, rejected = self.phase.rewards(logps, *tokens)
        metrics = {
            "loss": total,
            "chosen_logps": chosen_logps.sum(),
            "rejected_logps": rejected_logps.sum(),
            "chosen_rewards": chosen.sum(),
            "rejected_rewards": rejected.sum(),
            "margin": (chosen - rejected).sum(),
            "accuracy": (chosen > rejected).astype(mx.float32).sum(),
            "kl": 0.5 * kl_per_token(policy, reference, mask).sum(),
        }
        return LossSums(total, {name: metrics[name] for name in self.metrics})
