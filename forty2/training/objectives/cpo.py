"""CPO (Xu et al. 2024): DPO without a reference, and the likelihood of the chosen response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from forty2.training.objectives.pairs import ReferenceFreePhase
from forty2.training.objectives.phase import STRICT

if TYPE_CHECKING:
    from mlx.core import array

    from forty2.training.losses import PairLogps


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CpoPhase(ReferenceFreePhase):
    """Prefer one response to another by their log-probabilities, and imitate the chosen one."""

    objective: Literal["cpo"]
    beta: Annotated[float, Field(gt=0)]
    """Reward per nat of log-probability; the paper takes 0.1. No default."""
    sft_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the chosen responses' negative log-likelihood, mean over tokens; the paper's is 1."""

    def losses(self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array) -> array:
        from forty2.training.losses import cpo_loss

        return cpo_loss(logps.policy_chosen_logps, logps.policy_rejected_logps, beta=self.beta)
