"""The optimizers that a phase can name."""

from __future__ import annotations

import mlx.core as mx
import mlx.optimizers as optim

from forty2.model.tag_rows import is_tag_rows
from forty2.training.objectives.phase import Phase


def make_optimizer(phase: Phase) -> optim.Optimizer:
    """Make the phase's optimizer; the step sets its learning rate every time."""
    if phase.tags_lr is None:
        return _plain_optimizer(phase)
    return _WithTagRate(phase, phase.tags_lr / phase.lr)


class _WithTagRate(optim.MultiOptimizer):
    """Two optimizers of one kind, of which that of the tags' rows has a learning rate of its own."""

    def __init__(self, phase: Phase, ratio: float) -> None:
        """Make one optimizer for the tags' rows, and one for the rest.

        Args:
            ratio: learning rate of the tags' rows as a multiple of the others'.
        """
        parts = [_plain_optimizer(phase), _plain_optimizer(phase)]
        super().__init__(parts, [lambda name, _: is_tag_rows(name)])
        self._ratio = ratio

    @property
    def learning_rate(self) -> mx.array:
        rate: mx.array = self.optimizers[1].learning_rate
        return rate

    @learning_rate.setter
    def learning_rate(self, rate: float | mx.array) -> None:
        self.optimizers[0].learning_rate = rate * self._ratio
        self.optimizers[1].learning_rate = rate


def _plain_optimizer(phase: Phase) -> optim.Optimizer:
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
