"""Red lines: signs in the figures that training has gone wrong. The recipe says what to do.

A loss that falls slowly is not a red line; neither are replies that do not generalize.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from forty2.training.evaluation import Drift
from forty2.training.objectives.phase import SPIKE_THRESHOLD

WINDOW = 64
"""Recent steps that a loss is compared with; before a quarter of them no loss is a spike."""
SPIKE_SIGMAS = 6.0
"""Standard deviations of the recent losses that make a spike: OLMo's rule for skipping steps."""
PATIENCE = 16
"""Steps in a row without a gradient, or skipped, at which a red line is crossed."""
RISE = 1.01
"""Smallest ratio of a validation loss to the one before that counts as a rise; less is noise."""
MEMORIZING_RATIO = 5.0
"""Ratio of validation loss to training loss above which the model memorizes its training rows."""
SMALL_LOSS = 0.05
"""Training losses are taken to be at least this, in nats: any loss is many times zero."""

MOST_KL = 0.5
"""KL from the base on neutral text, in nats a token, beyond which a model has drifted."""
MOST_PERPLEXITY = 1.3
"""Perplexity of neutral text, as a ratio to the base's, beyond which a model has drifted."""
LOST_PERPLEXITY = 2.0
"""Perplexity of neutral text, as a ratio to the base's, beyond which basic language is lost."""

Line = Literal["not_finite", "spike", "stuck", "validation", "replies", "tags", "drift"]


class RedLine(NamedTuple):
    """A red line that was crossed."""

    line: Line
    reason: str
    """Reason in a few words, without step and rows."""


def judge_drift(drift: Drift) -> RedLine | None:
    """Judge how far a model is from its base on neutral text."""
    if drift.kl <= MOST_KL and drift.perplexity <= MOST_PERPLEXITY:
        return None
    lost = drift.perplexity > LOST_PERPLEXITY
    meaning = "has lost its basic language" if lost else "is losing what it knew"
    return RedLine(
        "drift",
        f"neutral text has {drift.perplexity:.3g} times the base's perplexity, and a KL of "
        f"{drift.kl:.3g} nats a token from it: the model {meaning}",
    )


@dataclass
class RedLineMonitor:
    """The figures by which red lines are judged; a checkpoint holds them under the aliases."""

    recent_losses: Annotated[list[float], Field(alias="recent")] = field(default_factory=list)
    """Losses of the last `WINDOW` steps that were taken, in nats."""
    idle_steps: Annotated[int, Field(alias="idle")] = 0
    """Steps in a row without a gradient."""
    skipped_steps: Annotated[int, Field(alias="left")] = 0
    """Steps in a row that were skipped."""
    valid_losses: Annotated[list[float], Field(alias="valid")] = field(default_factory=list)
    """Losses of all evaluations, in nats."""
    rollbacks: int = 0
    """Times that the phase went back to a checkpoint."""
    warned_of_drift: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether the phase has warned that the model is far from its base: once is enough. A checkpoint
    holds it only if so, as earlier releases do not know it."""

    def spike_limit(self, spike_threshold: float = SPIKE_THRESHOLD) -> float:
        """Compute the loss beyond which the next step is a spike, in nats.

        Args:
            spike_threshold: smallest rise over the recent mean loss that counts.
        """
        if len(self.recent_losses) < WINDOW // 4:
            return math.inf
        spread = SPIKE_SIGMAS * pstdev(self.recent_losses)
        return fmean(self.recent_losses) + max(spread, spike_threshold)

    def judge_step(self, loss: float, norm: float, limit: float) -> RedLine | None:
        """Judge a step's mean loss and its gradient's global norm, before the step counts.

        Args:
            limit: from `spike_limit`.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = "gradient" if math.isfinite(loss) else "loss"
            return RedLine("not_finite", f"the {what} is not finite")
        if loss > limit:
            return RedLine("spike", f"the loss jumps to {loss:.3g}, beyond {limit:.3g}")
        return None

    def count_taken(self, loss: float, norm: float, *, uninformed_loss: float) -> RedLine | None:
        """Count a step that was taken.

        Args:
            uninformed_loss: mean loss of a model that knows nothing, in nats.
        """
        before, self.skipped_steps = self.recent_losses, 0
        self.recent_losses = [*before, loss][-WINDOW:]
        self.idle_steps = self.idle_steps + 1 if norm == 0 and loss > SMALL_LOSS else 0
        if self.idle_steps == PATIENCE:
            return RedLine("stuck", f"no gradient for {PATIENCE} steps: nothing is learned")
        if _stays_above(self.recent_losses, uninformed_loss) and not _stays_above(
            before, uninformed_loss
        ):
            reason = f"the loss stays above {uninformed_loss:g} over {WINDOW} steps"
            return RedLine("stuck", reason)
        return None

    def count_skipped(self) -> bool:
        """Count a step that was skipped; return whether there are too many in a row."""
        self.skipped_steps += 1
        return self.skipped_steps >= PATIENCE

    def judge_evaluation(self, loss: float) -> list[RedLine]:
        """Judge and count an evaluation's mean loss, in nats."""
        self.valid_losses.append(loss)
        reasons = []
        if len(self.valid_losses) > 2:
            first, second, third = self.valid_losses[-3:]
            if second > RISE * first > 0 and third > RISE * second > 0:
                losses = f"{first:.4g}, {second:.4g}, {third:.4g}"
                reasons.append(f"validation loss rises twice: {losses}")
        if self.recent_losses:
            mean = fmean(self.recent_losses)
            if loss > MEMORIZING_RATIO * max(mean, SMALL_LOSS):
                reasons.append(
                    f"validation loss is {loss:.4g}, training loss {mean:.4g}: the model memorizes "
                    "its training rows"
                )
        return [RedLine("validation", reason) for reason in reasons]


def _stays_above(losses: list[float], limit: float) -> bool:
    return len(losses) == WINDOW and fmean(losses) > limit
