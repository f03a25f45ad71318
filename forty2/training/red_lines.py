"""Red lines: when training has gone wrong, told from its own figures. What to do is the recipe's.

A slow loss is not red, nor is an answer that has not learned to generalise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Literal, NamedTuple

from forty2.training.objectives.phase import SPIKE_THRESHOLD

WINDOW = 64
"""Steps that a loss is compared with; fewer than a quarter of them say nothing."""
SIGMAS = 6.0
"""A leap, in standard deviations of the window: OLMo's rule for steps to be skipped."""
IDLE = 16
"""Steps in a row that taught nothing."""
RISE = 1.01
"""Times the evaluation before: less is noise."""
APART = 5.0
"""Validation loss over training loss."""
LEAST = 0.05
"""Training losses below it count as this much: of almost nothing, anything is five times as much."""

Line = Literal["not_finite", "spike", "stuck", "validation", "replies"]


class Red(NamedTuple):
    """A red line crossed."""

    line: Line
    what: str
    """In a few words, without step and rows."""


@dataclass
class RedLineMonitor:
    """What a phase's red lines are judged by; part of a checkpoint."""

    recent: list[float] = field(default_factory=list)
    """Losses of the last steps that were taken."""
    idle: int = 0
    """Steps in a row without a gradient."""
    left: int = 0
    """Steps in a row left out."""
    valid: list[float] = field(default_factory=list)
    """Losses of all evaluations."""
    rollbacks: int = 0

    def limit(self, spike_threshold: float = SPIKE_THRESHOLD) -> float:
        """The loss beyond which the next step is a spike: above those before by `spike_threshold` at least."""
        if len(self.recent) < WINDOW // 4:
            return math.inf
        return fmean(self.recent) + max(SIGMAS * pstdev(self.recent), spike_threshold)

    def step(self, loss: float, norm: float, limit: float) -> Red | None:
        """Judge a step's mean loss and its gradient's global norm, before the step counts.

        Args:
            limit: as `limit` gave it.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "gradient" if math.isfinite(loss) else "loss"
            return Red("not_finite", f"the {what} is not finite")
        if loss > limit:
            return Red("spike", f"the loss leaps to {loss:.3g}, beyond {limit:.3g}")
        return None

    def taken(self, loss: float, norm: float, *, uninformed_loss: float) -> Red | None:
        """Count a step that was taken.

        Args:
            uninformed_loss: a mean loss beyond which a model knows nothing.
        """
        before, self.left = self.recent, 0
        self.recent = [*before, loss][-WINDOW:]
        self.idle = self.idle + 1 if norm == 0 and loss > LEAST else 0
        if self.idle == IDLE:
            return Red("stuck", f"no gradient for {IDLE} steps: nothing is learned")
        above = len(self.recent) == WINDOW and fmean(self.recent) > uninformed_loss
        if above and not (len(before) == WINDOW and fmean(before) > uninformed_loss):
            return Red("stuck", f"the loss stays above {uninformed_loss:g} over {WINDOW} steps")
        return None

    def left_out(self) -> bool:
        """Count a step that was not taken; whether there are too many in a row."""
        self.left += 1
        return self.left >= IDLE

    def evaluation(self, loss: float) -> list[Red]:
        """Judge and count an evaluation."""
        self.valid.append(loss)
        found = []
        if len(self.valid) > 2 and all(
            b > RISE * a > 0 for a, b in zip(self.valid[-3:], self.valid[-2:], strict=False)
        ):
            *_, first, second, third = self.valid
            found.append(f"validation loss rises twice: {first:.4g}, {second:.4g}, {third:.4g}")
        if self.recent and loss > APART * max(mean := fmean(self.recent), LEAST):
            found.append(f"validation loss is {loss:.4g}, training loss {mean:.4g}: it memorises")
        return [Red("validation", what) for what in found]
