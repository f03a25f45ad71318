"""DPO (Rafailov et al. 2023) and losses of its form: cDPO, IPO, SLiC's hinge, DPOP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from forty2.training.objectives.pairs import PairPhase
from forty2.training.objectives.phase import STRICT

if TYPE_CHECKING:
    from mlx.core import array

    from forty2.training.losses import PairLogps


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DpoPhase(PairPhase):
    """Prefer one response to another, anchored to the policy at the start of the phase."""

    objective: Literal["dpo"]
    beta: Annotated[float, Field(gt=0)]
    """Reward per nat of log-probability gained over the starting policy; a larger beta stays closer to
    that policy (for ipo: the paper's τ). No default."""
    loss: Literal["sigmoid", "hinge", "ipo", "dpop"] = "sigmoid"
    """Loss of a pair: sigmoid is DPO's, hinge SLiC's, ipo IPO's and dpop DPOP's."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs assumed to be labelled the wrong way round (sigmoid only): cDPO."""
    dpop_lambda: Annotated[float, Field(ge=0)] = 50.0
    """Weight of DPOP's penalty on chosen responses that became less likely (dpop only)."""

    @field_validator("label_smoothing")
    @classmethod
    def _smoothed(cls, share: float, info: ValidationInfo) -> float:
        loss = info.data.get("loss", "sigmoid")
        if share and loss != "sigmoid":
            raise ValueError(f"label_smoothing: only the sigmoid loss has it, not {loss}")
        return share

    @property
    def loss_name(self) -> str:
        return self.loss

    @property
    def start_slack(self) -> float:
        # A chosen response that looks less likely by rounding alone is penalized λ-fold.
        return 1 + self.dpop_lambda * (self.loss == "dpop")

    def losses(self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array) -> array:
        from forty2.training.losses import preference_loss

        return preference_loss(
            logps,
            loss=self.loss,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            dpop_lambda=self.dpop_lambda,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
        )

    def initial_loss(self) -> float:
        from forty2.training.losses import initial_preference_loss

        return initial_preference_loss(self.loss, self.beta)
