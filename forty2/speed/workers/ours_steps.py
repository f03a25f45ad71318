"""The training steps that our workers share. No worker of its own."""

from __future__ import annotations

import mlx.nn as nn

from forty2.training.batched_loss import BatchedLoss, micro_batches
from forty2.training.loop import Stepper, make_optimizer, order_of
from forty2.training.objectives.phase import Phase


def train_one_epoch(model: nn.Module, objective: BatchedLoss, phase: Phase) -> None:
    """Train on every row once, as a phase of a run does."""
    stepper = Stepper(model, make_optimizer(phase), objective, phase)
    order = order_of(phase, objective.lengths, objective.weights, seed=1)
    model.train()
    for index in range(order.batches_per_epoch):
        stepper.step([*micro_batches(objective, order.batch(index))], phase.lr)
