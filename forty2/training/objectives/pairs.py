"""The base of objectives over preference pairs; no objective itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from forty2.text.row_kinds import PAIRS, RowKind
from forty2.training.objectives.phase import STRICT, Direction, Phase

if TYPE_CHECKING:
    from mlx.core import array

    from forty2.training.losses import PairLogps


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PairPhase(Phase):
    """A phase over preference pairs; a subclass states its loss."""

    row_kind: ClassVar[RowKind] = PAIRS
    needs_reference: ClassVar[bool] = True
    # On the tuned recipe, DPO reached a held-out loss of 0.45 to 0.48 nats with batches of similar
    # length, and 0.42 with random ones. For SFT it made no difference.
    sorts_batches: ClassVar[bool] = False
    metrics: ClassVar[dict[str, Direction | None]] = {
        "loss": "min",
        "chosen_logps": None,
        "rejected_logps": None,
        "chosen_rewards": None,
        "rejected_rewards": None,
        "margin": "max",
        "accuracy": "max",
        "kl": None,
    }

    beta: Annotated[float, Field(gt=0)]
    """Reward per nat of log-probability gained over the starting policy. No default."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen responses' negative log-likelihood, mean over tokens, added to the loss: RPO.
    It holds the likelihood of chosen responses, which a preference alone may lower."""
    length_desensitise: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Weight of a response's tokens beyond the length of the other one, in sums and in means; 1: all count
    alike. LD-DPO has less, so that a longer answer is not better for its length."""

    @property
    def loss_name(self) -> str:
        """Name of the loss in messages."""
        return self.objective

    @property
    def start_slack(self) -> float:
        """Factor by which the loss at the start magnifies rounding errors of the log-probabilities."""
        return 1.0

    def losses(self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array) -> array:
        """Compute the loss of each pair, (B,).

        Args:
            logps: summed log-probabilities, each (B,), in nats; the reference's are zero where the
                objective needs none.
            chosen_tokens, rejected_tokens: (B,) lengths of the responses, by the weights of their tokens.
        """
        raise NotImplementedError

    def rewards(
        self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array
    ) -> tuple[array, array]:
        """Compute the implicit rewards of the chosen and of the rejected responses, each (B,).

        The metrics margin and accuracy compare them.
        """
        return (
            self.beta * (logps.policy_chosen_logps - logps.reference_chosen_logps),
            self.beta * (logps.policy_rejected_logps - logps.reference_rejected_logps),
        )

    def initial_loss(self) -> float:
        """Return the loss of each pair while the policy is the reference.

        Without the term of `sft_weight`. Checked before the first step; only an objective that needs a
        reference has it.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ReferenceFreePhase(PairPhase):
    """A phase over pairs that no reference anchors: there is no reference pass, and none to store."""

    needs_reference: ClassVar[bool] = False
    metrics: ClassVar[dict[str, Direction | None]] = {
        name: direction for name, direction in PairPhase.metrics.items() if name != "kl"
    }


def token_means(
    logps: PairLogps, chosen_tokens: array, rejected_tokens: array
) -> tuple[array, array]:
    """Compute the policy's mean log-probability of a token of both responses, each (B,)."""
    return logps.policy_chosen_logps / chosen_tokens, logps.policy_rejected_logps / rejected_tokens
