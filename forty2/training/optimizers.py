"""The optimizers that a phase can name."""

from __future__ import annotations

import mlx.optimizers as optim

from forty2.training.objectives.phase import Phase


def make_optimizer(phase: Phase) -> optim.Optimizer:
    """Make the phase's optimizer; the step sets its learning rate every time."""
    if phase.optimizer == "adamw":
        return optim.AdamW(phase.lr, weight_decay=phase.weight_decay, bias_correction=True)
    if phase.optimizer == "adam":
        return optim.Adam(phase.lr, bias_correction=True)
    if phase.optimizer == "lion":
        return optim.Lion(phase.lr, weight_decay=phase.weight_decay)
    if phase.optimizer == "sgd":
        return optim.SGD(phase.lr, weight_decay=phase.weight_decay)
    return optim.Adafactor(
        phase.lr, relative_step=False, scale_parameter=False, weight_decay=phase.weight_decay
    )
