"""ORPO (Hong et al. 2024): likelihood and preference in one phase, without a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from forty2.training.objectives.pairs import ReferenceFreePhase, token_means
from forty2.training.objectives.phase import STRICT

if TYPE_CHECKING:
    from mlx.core import array

    from forty2.training.losses import PairLogps


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OrpoPhase(ReferenceFreePhase):
    """Imitate the chosen responses, and prefer them to the rejected ones: a base model needs no SFT
    before."""

    objective: Literal["orpo"]
    beta: Annotated[float, Field(gt=0)]
    """Weight of the preference beside the likelihood: λ of the paper, which takes 0.1. No default."""
    sft_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the chosen responses' negative log-likelihood, mean over tokens; the paper's is 1."""

    def losses(self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array) -> array:
        from forty2.training.losses import orpo_loss

        return orpo_loss(*token_means(logps, chosen_tokens, rejected_tokens), beta=self.beta)

    def rewards(
        self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array
    ) -> tuple[array, array]:
        chosen, rejected = token_means(logps, chosen_tokens, rejected_tokens)
        return self.beta * chosen, self.beta * rejected
