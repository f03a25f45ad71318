"""Losses as pure functions of log-probabilities; each returns one value per row, (B,) fp32.

Names are the papers': π is the policy, the reference is the policy as the phase began. With
    h = (log π(chosen) - log ref(chosen)) - (log π(rejected) - log ref(rejected))
the implicit reward margin is β·h.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import mlx.core as mx
import mlx.nn as nn

PreferenceLoss = Literal["sigmoid", "hinge", "ipo", "dpop"]
PREFERENCE_LOSSES: tuple[PreferenceLoss, ...] = get_args(PreferenceLoss)


class PairLogps(NamedTuple):
    """Summed log-probabilities of both responses, each (B,), in nats."""

    policy_chosen_logps: mx.array
    policy_rejected_logps: mx.array
    reference_chosen_logps: mx.array
    reference_rejected_logps: mx.array


def preference_loss(
    logps: PairLogps,
    *,
    loss: PreferenceLoss,
    beta: float,
    label_smoothing: float = 0.0,
    dpop_lambda: float = 50.0,
    chosen_tokens: mx.array | None = None,
    rejected_tokens: mx.array | None = None,
) -> mx.array:
    """Compute the loss of each pair, (B,).

    Args:
        logps: log-probabilities under policy and reference.
        loss: which of `PREFERENCE_LOSSES`.
        beta: β, inverse temperature of the implicit reward; for IPO it is the paper's τ.
        label_smoothing: ε, the share of pairs assumed to be labelled the wrong way round
            (sigmoid only: this is cDPO). 0 <= ε < 0.5.
        dpop_lambda: λ, weight of DPOP's penalty.
        chosen_tokens, rejected_tokens: (B,) response lengths, needed by IPO, which averages.
    """
    chosen_ratio = logps.policy_chosen_logps - logps.reference_chosen_logps
    rejected_ratio = logps.policy_rejected_logps - logps.reference_rejected_logps
    h = chosen_ratio - rejected_ratio
    if loss == "sigmoid":
        # DPO, Rafailov et al. 2023 (arXiv:2305.18290), eq. 7: -log σ(β h).
        # cDPO (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3) mixes in the flip.
        right, flipped = nn.log_sigmoid(beta * h), nn.log_sigmoid(-beta * h)
        return mx.negative((1 - label_smoothing) * right + label_smoothing * flipped)
    if loss == "hinge":
        # SLiC's hinge on the implicit reward: Liu et al. 2023, RSO (arXiv:2309.06657), eq. 8.
        return mx.maximum(0.0, 1 - beta * h)
    if loss == "ipo":
        # Azar et al. 2023 (arXiv:2310.12036), eq. 17: (h - 1/(2τ))². Log-ratios are per-token
        # means, as the authors corrected it for language models: sums make τ depend on length.
        if chosen_tokens is None or rejected_tokens is None:
            raise ValueError("ipo needs chosen_tokens and rejected_tokens")
        mean_h = chosen_ratio / chosen_tokens - rejected_ratio / rejected_tokens
        return mx.square(mean_h - 1 / (2 * beta))
    if loss == "dpop":
        # Pal et al. 2024, Smaug (arXiv:2402.13228), eq. 3: the penalty sits inside log σ,
        # and acts only where the chosen response has become less likely than it was.
        penalty = mx.maximum(0.0, -chosen_ratio)
        return mx.negative(nn.log_sigmoid(beta * (h - dpop_lambda * penalty)))
    raise ValueError(f"unknown preference loss {loss!r}; one of {', '.join(PREFERENCE_LOSSES)}")


def kto_loss(
    policy_logps: mx.array,
    reference_logps: mx.array,
    desirable: mx.array,
    baseline: mx.array,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> mx.array:
    """Compute the loss of each rated response, (B,).

    Args:
        policy_logps, reference_logps: (B,) summed log-probabilities in nats.
        desirable: (B,) bool, the verdicts.
        baseline: scalar z0, the policy's drift KL(policy‖reference) in nats, without gradient.
        beta: β, how soon gains and losses saturate.
        desirable_weight, undesirable_weight: λ_D and λ_U, the aversion to either loss.
    """
    # KTO, Ethayarajh et al. 2024 (arXiv:2402.01306), eq. 8: λ_y - v(x, y) = λ_y σ(∓β (r - z0)).
    gain = beta * (policy_logps - reference_logps - baseline)
    good, bad = mx.sigmoid(-gain), mx.sigmoid(gain)
    return mx.where(desirable, desirable_weight * good, undesirable_weight * bad)


def initial_preference_loss(loss: PreferenceLoss, beta: float) -> float:
    """Return the loss of each pair while the policy is the reference: h = 0."""
    at_zero = {"sigmoid": 0.6931471805599453, "hinge": 1.0, "dpop": 0.6931471805599453}
    return at_zero[loss] if loss in at_zero else 1 / (2 * beta) ** 2
