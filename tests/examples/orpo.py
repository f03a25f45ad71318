"""ORPO (Hong et al. 2024, arXiv:2403.07691): likelihood and preference in one phase, no reference.

A worked example. To add an objective, put its equation into `forty2/training/losses.py` and a file
like this one into `forty2/training/objectives/`; nothing else knows of it. Here the equation stands
in the same file, so that the example is whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from forty2.training.objectives.pairs import PairPhase
from forty2.training.objectives.phase import STRICT, Direction

if TYPE_CHECKING:
    from mlx.core import array

    from forty2.training.losses import PairLogps


def orpo_loss(chosen: array, rejected: array, *, beta: float) -> array:
    """Compute the loss of each pair, (B,).

    Args:
        chosen, rejected: (B,) mean log-probabilities of a token, in nats.
        beta: weight of the preference: λ of the paper.
    """
    import mlx.core as mx
    import mlx.nn as nn

    # eq. 6 and 7: L_NLL - λ log σ(log (odds(chosen) / odds(rejected))), odds(p) = p / (1 - p)
    log_odds = chosen - rejected - (mx.log1p(-mx.exp(chosen)) - mx.log1p(-mx.exp(rejected)))
    loss: mx.array = -chosen - beta * nn.log_sigmoid(log_odds)
    return loss


# The recipe's keys are the fields of this class, with those that every phase has.
@dataclass(frozen=True, kw_only=True, config=STRICT)
class OrpoPhase(PairPhase):
    """Imitate the chosen responses, and prefer them to the rejected ones."""

    needs_reference: ClassVar[bool] = False
    metrics: ClassVar[dict[str, Direction | None]] = {
        "loss": "min",
        "chosen_logps": None,
        "rejected_logps": None,
        "margin": "max",
        "accuracy": "max",
    }

    objective: Literal["orpo"]
    beta: Annotated[float, Field(gt=0)]
    """Weight of the preference beside the likelihood: λ of the paper. No default."""

    def losses(self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array) -> array:
        return orpo_loss(*_token_means(logps, chosen_tokens, rejected_tokens), beta=self.beta)

    def rewards(
        self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array
    ) -> tuple[array, array]:
        chosen, rejected = _token_means(logps, chosen_tokens, rejected_tokens)
        return self.beta * chosen, self.beta * rejected


def _token_means(
    logps: PairLogps, chosen_tokens: array, rejected_tokens: array
) -> tuple[array, array]:
    return logps.policy_chosen_logps / chosen_tokens, logps.policy_rejected_logps / rejected_tokens
