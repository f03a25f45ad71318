"""The loss of rated responses: KTO."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from forty2.inference.logprobs import NO_SHORTCUTS, Shortcuts
from forty2.inference.padding import PairBatch
from forty2.model.phase_attention import ORDER_PARAMETER
from forty2.model.surgery import evaluating
from forty2.text.rows import RatedRow
from forty2.training.batched_loss.base import LossSums
from forty2.training.batched_loss.responses import (
    KL_TERM,
    KlPenalty,
    ResponseLoss,
    kl_per_token,
    won,
)
from forty2.training.batches import CHOSEN, REJECTED, Batch
from forty2.training.frozen_states import FrozenStates
from forty2.training.objectives.kto import KtoPhase
from forty2.training.processes import Group
from forty2.training.reference import TokenLogps


class RatedLoss(ResponseLoss):
    """KTO: makes desirable responses likelier than the policy's own drift, and others less likely.

    A step takes two passes. The drift is measured first, on responses to other prompts: it enters
    the loss of every row, so it must be known before the first gradient.
    """

    sides = (CHOSEN,)
    name = "kto"

    def __init__(
        self,
        rows: Sequence[RatedRow],
        reference: TokenLogps | None,
        phase: KtoPhase,
        shortcuts: Shortcuts = NO_SHORTCUTS,
        frozen: FrozenStates | None = None,
        kl: KlPenalty | None = None,
    ) -> None:
        super().__init__(rows, reference, shortcuts, frozen, kl)
        self.phase = phase
        self.metrics = (*phase.metrics, *([KL_TERM] if kl is not None else []))
        self._desirable = np.array([row.desirable for row in rows])

    def arrays(self, batch: Batch) -> list[mx.array]:
        """Convert a batch to verdicts (B,), then the arrays that `logps` reads."""
        assert isinstance(batch, PairBatch)
        return [mx.array(self._desirable[batch.rows]), *super().arrays(batch)]

    def step_arrays(
        self, model: nn.Module, batches: Iterable[Batch], group: Group, progress: float = 1.0
    ) -> list[mx.array]:
        """Estimate z0: KL(policy‖reference) per response, on responses to other prompts.

        Returns:
            A scalar in nats, at least 0 and without gradient: the mean log ratio, as Ethayarajh et
            al. 2024 (arXiv:2402.01306) estimate it. Then the weight of the term λ·KL, if there is one.
        """
        total, rows = mx.array(0.0), 0
        with evaluating(model):  # without dropout
            for batch in batches:
                assert isinstance(batch, PairBatch)
                others = self.batch_of_sides(batch.rows.tolist(), [REJECTED])
                logps = self.logps(model, self.arrays_of_sides(others, [REJECTED]))
                total = total + (logps.policy - logps.reference).sum()
                rows += batch.weight
                mx.async_eval(total)
        total, all_rows = group.all_sum((total, rows))
        baseline = mx.maximum(0.0, total / all_rows)
        return [baseline, *self.kl_weight(progress)]

    def loss_at_start(self, batch: PairBatch) -> float:
        verdicts = self._desirable[batch.rows].tolist()
        return float(np.mean([self.phase.initial_loss(desirable) for desirable in verdicts]))

    def pulls(self, index: int) -> tuple[float, ...]:
        if self._desirable[index]:
            return (self.phase.desirable_weight,)
        return (-self.phase.undesirable_weight,)

    def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> LossSums:
        desirable, *arrays = arrays
        weight = arrays.pop() if self._kl is not None else mx.array(0.0)
        baseline = arrays.pop()
        policy, reference, mask, kl, order = self.logps(model, arrays)
        logps, reference_logps = policy.sum(axis=-1), reference.sum(axis=-1)
        losses = self.phase.losses(logps, reference_logps, desirable, baseline)
        if kl is not None:
            losses = losses + weight * kl
        total = losses.sum()
        reward = self.phase.beta * (logps - reference_logps - baseline)
        margin = mx.where(desirable, reward, -reward)
        metrics = {
            "loss": total,
            "logps": logps.sum(),
            "margin": margin.sum(),
            "accuracy": won(margin).sum(),
            "baseline": baseline * desirable.size,
            "kl": kl_per_token(policy, reference, mask).sum(),
        }
        if kl is not None:
            metrics[KL_TERM] = kl.sum()
        metrics = {name: metrics[name] for name in self.metrics}
        if order is not None:
            metrics[ORDER_PARAMETER] = order.sum()
        return LossSums(total, metrics)
