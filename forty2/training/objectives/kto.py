"""KTO (Ethayarajh et al. 2024): single responses, each desirable or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from forty2.text.row_kinds import RATED, RowKind
from forty2.text.rows import AnyPair, RatedRow, Row
from forty2.training.objectives.kl_term import KlTerm
from forty2.training.objectives.phase import STRICT, Direction, Phase

if TYPE_CHECKING:
    from mlx.core import array


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KtoPhase(Phase):
    """Make desirable responses likelier and others less likely, anchored to the policy at the start of
    the phase."""

    row_kind: ClassVar[RowKind] = RATED
    needs_reference: ClassVar[bool] = True
    sorts_batches: ClassVar[bool] = False
    metrics: ClassVar[dict[str, Direction | None]] = {
        "loss": "min",
        "logps": None,
        "margin": "max",
        "accuracy": "max",
        "baseline": None,
        "kl": None,
    }

    objective: Literal["kto"]
    beta: Annotated[float, Field(gt=0)]
    """Speed, per nat of log-probability, at which gains and losses saturate; a larger beta stays
    closer to the starting policy. No default."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the desirable rows' loss: λ_D of the paper."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of the other rows' loss: λ_U of the paper.

    Raise the weight of the rarer verdict: the number of desirable rows times desirable_weight
    should be 1 to 4/3 times the number of the others times undesirable_weight.
    """
    kl: KlTerm | None = None
    """Penalty on the divergence from the starting policy over the whole vocabulary, added to the loss;
    null: none."""

    @property
    def kl_term(self) -> KlTerm | None:
        return self.kl

    @property
    def spike_threshold(self) -> float:
        return max(self.desirable_weight, self.undesirable_weight) / 2  # no loss exceeds its weight

    def losses(
        self, policy_logps: array, reference_logps: array, desirable: array, baseline: array
    ) -> array:
        """Compute the loss of each response, (B,); see `training.losses.kto_loss`."""
        from forty2.training.losses import kto_loss

        return kto_loss(
            policy_logps,
            reference_logps,
            desirable,
            baseline,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )

    def initial_loss(self, desirable: bool) -> float:
        """Return the loss of a response with this verdict while the policy is the reference."""
        return (self.desirable_weight if desirable else self.undesirable_weight) / 2

    def data_warnings(self, rows: Sequence[Row] | Sequence[AnyPair]) -> list[str]:
        """Warn if one verdict outweighs the other more than the paper advises."""
        desirable, others = (
            sum(
                row.weight for row in rows if isinstance(row, RatedRow) and row.desirable is verdict
            )
            for verdict in (True, False)
        )
        desirable, others = desirable * self.desirable_weight, others * self.undesirable_weight
        balance = desirable / others if others else math.inf
        if 1 <= round(balance, 2) <= 1.34:
            return []
        return [
            f"desirable rows weigh {balance:.2f} times what others do; 1 to 4/3 is best "
            "(desirable_weight, undesirable_weight)"
        ]
