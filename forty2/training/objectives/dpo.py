"""DPO (Rafailov et al. 2023) and other losses of pairs against a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from forty2.training.objectives.kl_term import KlTerm
from forty2.training.objectives.pairs import PairPhase
from forty2.training.objectives.phase import SPIKE_THRESHOLD, STRICT

if TYPE_CHECKING:
    from mlx.core import array

    from forty2.training.losses import PairLogps

PreferenceLoss = Literal[
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "dpop",
    "sigmoid_norm",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
]
FDivergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]
_DPOP_LAMBDA = 50.0
_MARGIN_LOSSES = ("sigmoid", "robust", "hinge", "exo_pair", "discopop")
"""Losses of the difference of both gains, which an f-divergence may measure in another way."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DpoPhase(PairPhase):
    """Prefer one response to another, anchored to the policy at the start of the phase."""

    objective: Literal["dpo"]
    beta: Annotated[float, Field(gt=0)]
    """Reward per nat of log-probability gained over the starting policy; a larger beta stays closer to
    that policy (for ipo: the paper's τ). No default."""
    loss: PreferenceLoss = "sigmoid"
    """Loss of a pair: sigmoid is DPO's, robust rDPO's, hinge SLiC's, ipo IPO's, dpop DPOP's, sigmoid_norm
    DPO's on token means, and the others are named after their papers."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs assumed to be labelled the wrong way round: cDPO with sigmoid, rDPO with robust, EXO
    with exo_pair (0 is 0.001 there)."""
    dpop_lambda: Annotated[float, Field(ge=0)] = _DPOP_LAMBDA
    """Weight of DPOP's penalty on chosen responses that became less likely (dpop only)."""
    f_divergence: FDivergence = "reverse_kl"
    """Divergence from the starting policy that anchors the phase (sigmoid, robust, hinge, exo_pair and
    discopop); DPO's is reverse_kl, and alpha is of order 1/2."""
    kl: KlTerm | None = None
    """Penalty on the divergence from the starting policy over the whole vocabulary, added to the loss;
    null: none."""

    @field_validator("label_smoothing")
    @classmethod
    def _smoothed(cls, share: float, info: ValidationInfo) -> float:
        loss = info.data.get("loss", "sigmoid")
        if share and loss not in ("sigmoid", "robust", "exo_pair"):
            raise ValueError(
                f"label_smoothing: only sigmoid, robust and exo_pair have it, not {loss}"
            )
        if loss == "robust" and not share:
            raise ValueError(
                "label_smoothing: robust needs the share of wrong labels, e.g. 0.1; without any it is "
                "the sigmoid loss"
            )
        return share

    @field_validator("dpop_lambda")
    @classmethod
    def _of_dpop(cls, weight: float, info: ValidationInfo) -> float:
        loss = info.data.get("loss", "sigmoid")
        if loss != "dpop" and weight != _DPOP_LAMBDA:
            raise ValueError(f"dpop_lambda: only dpop has it, not {loss}")
        return weight

    @field_validator("f_divergence")
    @classmethod
    def _of_the_margin(cls, divergence: str, info: ValidationInfo) -> str:
        loss = info.data.get("loss", "sigmoid")
        if divergence != "reverse_kl" and loss not in _MARGIN_LOSSES:
            raise ValueError(
                f"f_divergence: {loss} is made for reverse_kl; others go with "
                f"{', '.join(_MARGIN_LOSSES)}"
            )
        return divergence

    @property
    def loss_name(self) -> str:
        return self.loss

    @property
    def start_slack(self) -> float:
        # A chosen response that looks less likely by rounding alone is penalized λ-fold.
        return 1 + self.dpop_lambda * (self.loss == "dpop")

    @property
    def kl_term(self) -> KlTerm | None:
        return self.kl

    @property
    def spike_threshold(self) -> float:
        # The squares of ipo and sppo_hard begin far above 1, and so are their swings.
        return max(SPIKE_THRESHOLD, self.initial_loss())

    def losses(self, logps: PairLogps, chosen_tokens: array, rejected_tokens: array) -> array:
        from forty2.training.losses import preference_loss

        return preference_loss(
            logps,
            loss=self.loss,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            dpop_lambda=self.dpop_lambda,
            f_divergence=self.f_divergence,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
        )

    def initial_loss(self) -> float:
        from forty2.training.losses import initial_preference_loss

        return initial_preference_loss(self.loss, self.beta, self.label_smoothing)
