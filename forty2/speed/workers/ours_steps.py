"""The training steps that our workers share; not a worker itself."""

from __future__ import annotations

import mlx.nn as nn

from forty2.training.batched_loss import BatchedLoss, micro_batches
from forty2.training.objectives.phase import Phase
from forty2.training.optimizers import make_optimizer
from forty2.training.schedule import plan_phase
from forty2.training.step import Stepper


def train_one_epoch(model: nn.Module, objective: BatchedLoss, phase: Phase) -> None:
    """Train on every row once, as a phase of a run does."""
    stepper = Stepper(model, make_optimizer(phase), objective, phase)
    order = plan_phase(phase, objective.lengths, objective.weights, seed=1).order
    model.train()
    for index in range(order.batches_per_epoch):
        stepper.step([*micro_batches(objective, order.batch(index))], phase.lr)
