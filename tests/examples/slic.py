"""SLiC-HF (Zhao et al. 2023, arXiv:2305.10425): a hinge on the sequence likelihoods, no reference.

A worked example. To add an objective, put its equation into `forty2/training/losses.py` and a file
like this one into `forty2/training/objectives/`; nothing else knows of it. Here the equation stands
in the same file, so that the example is whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from forty2.training.objectives.pairs import ReferenceFreePhase, token_means
from forty2.training.objectives.phase import STRICT

if TYPE_CHECKING:
    from mlx.core import array

    from forty2.training.losses import PairLogps


def slic_loss(chosen: array, rejected: array, *, beta: float) -> array:
    """Compute the loss of each pair, (B,): max(0, δ - log π(chosen) + log π(rejected)), δ = 1 / β.

    Args:
        chosen, rejected: (B,) mean log-probabilities of a token, in nats.
        beta: inverse of the margin δ.
    """
    import mlx.core as mx

    return mx.maximum(0.0, 1 - beta * (chosen - rejected))


# The recipe's keys are the fields of this class, with those that every phase has.
@dataclass(frozen=True, kw_only=True, config=STRICT)
class SlicPhase(ReferenceFreePhase):
    """Prefer one response to another by a margin, and imitate the chosen one."""

    objective: Literal["slic"]
    beta: Annotated[float, Field(gt=0)]
    """Inverse of the margin, in nats a token. No default."""
    sft_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the chosen responses' negative log-likelihood; the paper regularizes with it."""

    def losses(self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array) -> array:
        return slic_loss(*token_means(logps, chosen_tokens, rejected_tokens), beta=self.beta)

    def rewards(
        self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array
    ) -> tuple[array, array]:
        chosen, rejected = token_means(logps, chosen_tokens, rejected_tokens)
        return self.beta * chosen, self.beta * rejected
