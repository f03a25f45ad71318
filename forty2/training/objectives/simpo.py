"""SimPO (Meng et al. 2024): the mean log-probability of a token is the reward, without a reference."""

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
class SimpoPhase(ReferenceFreePhase):
    """Prefer one response to another by the mean log-probability of its tokens, by a target margin."""

    objective: Literal["simpo"]
    beta: Annotated[float, Field(gt=0)]
    """Scale of the rewards; the paper takes 2 to 2.5 and a rate near 1e-6 for full training. No
    default."""
    gamma_beta_ratio: Annotated[float, Field(ge=0)] = 0.55
    """Target margin in nats a token: γ / β of the paper, which takes 0.3 to 0.8."""

    def losses(self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array) -> array:
        from forty2.training.losses import simpo_loss

        means = token_means(logps, chosen_tokens, rejected_tokens)
        return simpo_loss(*means, beta=self.beta, gamma_beta_ratio=self.gamma_beta_ratio)

    def rewards(
        self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array
    ) -> tuple[array, array]:
        chosen, rejected = token_means(logps, chosen_tokens, rejected_tokens)
        return self.beta * chosen, self.beta * rejected
