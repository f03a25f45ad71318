"""The term λ·KL, which any loss against a reference may add."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from forty2.training.objectives.phase import STRICT

KlKind = Literal["reverse", "forward", "js"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KlTerm:
    """A penalty on the divergence from the starting policy: weight · KL, added to each row's loss.

    The KL is over the whole vocabulary, a mean over the tokens of each response, then over the
    responses.
    """

    weight: Annotated[float, Field(ge=0)]
    """Weight λ of a nat a token. No default."""
    kind: KlKind = "reverse"
    """reverse: KL(policy‖reference); forward: KL(reference‖policy); js: Jensen-Shannon, at most ln 2."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the weight, from `weight` at the first step to `to` at the last."""
    to: Annotated[float, Field(ge=0)] | None = None
    """Weight at the last step, for linear and cosine. Validation rows are judged by it at all
    evaluations, so that their losses can be compared."""

    @field_validator("to")
    @classmethod
    def _goes_somewhere(cls, to: float | None, info: ValidationInfo) -> float | None:
        schedule = info.data.get("schedule")
        if schedule == "constant" and to is not None:
            raise ValueError("to: a constant weight has none; set schedule to linear or cosine")
        if schedule in ("linear", "cosine") and to is None:
            raise ValueError(f"to: {schedule} needs the weight at the last step")
        return to

    def at(self, progress: float) -> float:
        """Return the weight at a share of the phase: 0 is the first step, 1 the last."""
        if self.to is None:
            return self.weight
        if self.schedule == "cosine":
            progress = 0.5 * (1 - math.cos(math.pi * progress))
        return self.weight + (self.to - self.weight) * progress
