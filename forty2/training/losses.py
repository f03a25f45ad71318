"""Losses as pure functions of log-probabilities; each returns one value per row, (B,) fp32.

Names are the papers': π is the policy, the reference is the policy as the phase began. With
    h = (log π(chosen) - log ref(chosen)) - (log π(rejected) - log ref(rejected))
the implicit reward margin is β·h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, get_args

import mlx.core as mx
import mlx.nn as nn

from forty2.training.objectives.dpo import FDivergence, PreferenceLoss

PREFERENCE_LOSSES: tuple[PreferenceLoss, ...] = get_args(PreferenceLoss)
LARGEST_EXPONENT = 20.0
"""Largest exponent of an f-divergence's score: e^20 is still far from an overflow, and its gradient
beyond that is 0."""
DISCOPOP_TEMPERATURE = 0.05
NEAR_CERTAIN = -1e-6
"""Largest mean log-probability of a token for which ORPO's odds are computed: those of certainty are
infinite."""


class PairLogps(NamedTuple):
    """Summed log-probabilities of both responses, each (B,), in nats."""

    policy_chosen_logps: mx.array
    policy_rejected_logps: mx.array
    reference_chosen_logps: mx.array
    reference_rejected_logps: mx.array


class Gains(NamedTuple):
    """Gains of both responses against the reference: log π(y) - log ref(y), each (B,), in nats."""

    chosen: mx.array
    rejected: mx.array
    chosen_tokens: mx.array
    """Tokens of the responses, (B,)."""
    rejected_tokens: mx.array

    @property
    def h(self) -> mx.array:
        """The difference of the gains."""
        return self.chosen - self.rejected


def preference_loss(
    logps: PairLogps,
    *,
    loss: PreferenceLoss,
    beta: float,
    chosen_tokens: mx.array,
    rejected_tokens: mx.array,
    label_smoothing: float = 0.0,
    dpop_lambda: float = 50.0,
    f_divergence: FDivergence = "reverse_kl",
) -> mx.array:
    """Compute the loss of each pair, (B,).

    Args:
        logps: log-probabilities under policy and reference.
        loss: which of `PREFERENCE_LOSSES`.
        beta: β, inverse temperature of the implicit reward; for ipo and sppo_hard it is the papers' τ
            and 1/η.
        chosen_tokens, rejected_tokens: (B,) response lengths, read by the losses that average.
        label_smoothing: ε, the share of pairs assumed to be labelled the wrong way round (sigmoid,
            robust and exo_pair). 0 <= ε < 0.5.
        dpop_lambda: λ, weight of DPOP's penalty.
        f_divergence: the divergence from the reference that anchors the policy, for losses of h alone.
    """
    gains = Gains(
        f_score(logps.policy_chosen_logps - logps.reference_chosen_logps, f_divergence),
        f_score(logps.policy_rejected_logps - logps.reference_rejected_logps, f_divergence),
        chosen_tokens,
        rejected_tokens,
    )
    if loss in ("sigmoid", "robust", "exo_pair"):
        return {"sigmoid": sigmoid, "robust": robust, "exo_pair": exo_pair}[loss](
            gains, beta, label_smoothing
        )
    return dpop(gains, beta, dpop_lambda) if loss == "dpop" else _PLAIN[loss](gains, beta)


def sigmoid(gains: Gains, beta: float, label_smoothing: float) -> mx.array:
    """DPO, Rafailov et al. 2023 (arXiv:2305.18290), eq. 7: -log σ(β h). At the start ln 2.

    cDPO (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3) mixes in the flipped label.
    """
    right, flipped = nn.log_sigmoid(beta * gains.h), nn.log_sigmoid(-beta * gains.h)
    return mx.negative((1 - label_smoothing) * right + label_smoothing * flipped)


def robust(gains: Gains, beta: float, label_smoothing: float) -> mx.array:
    """rDPO, Chowdhury et al. 2024 (arXiv:2403.00409): unbiased if a share ε of labels is
    flipped. At the start ln 2."""
    right, flipped = nn.log_sigmoid(beta * gains.h), nn.log_sigmoid(-beta * gains.h)
    found: mx.array = (label_smoothing * flipped - (1 - label_smoothing) * right) / (
        1 - 2 * label_smoothing
    )
    return found


def hinge(gains: Gains, beta: float) -> mx.array:
    """SLiC's hinge on the implicit reward: Liu et al. 2023, RSO (arXiv:2309.06657), eq. 8. At the
    start 1."""
    return mx.maximum(0.0, 1 - beta * gains.h)


def ipo(gains: Gains, beta: float) -> mx.array:
    """Azar et al. 2023 (arXiv:2310.12036), eq. 17: (h - 1/(2τ))². At the start 1/(2τ)².

    Log-ratios are per-token means, as the authors corrected it for language models: sums make τ
    depend on length.
    """
    mean_h = gains.chosen / gains.chosen_tokens - gains.rejected / gains.rejected_tokens
    return mx.square(mean_h - 1 / (2 * beta))


def dpop(gains: Gains, beta: float, dpop_lambda: float) -> mx.array:
    """Pal et al. 2024, Smaug (arXiv:2402.13228), eq. 3. At the start ln 2.

    The penalty sits inside log σ, and acts only where the chosen response has become less likely.
    """
    penalty = mx.maximum(0.0, -gains.chosen)
    return mx.negative(nn.log_sigmoid(beta * (gains.h - dpop_lambda * penalty)))


def sigmoid_norm(gains: Gains, beta: float) -> mx.array:
    """DPO with gains per token, as in Tülu 3 (arXiv:2411.15124). At the start ln 2.

    β has to be larger than DPO's by about the number of tokens.
    """
    mean_h = gains.chosen / gains.chosen_tokens - gains.rejected / gains.rejected_tokens
    return mx.negative(nn.log_sigmoid(beta * mean_h))


def exo_pair(gains: Gains, beta: float, label_smoothing: float) -> mx.array:
    """EXO, Ji et al. 2024 (arXiv:2402.00856): KL(q ‖ labels), q = σ(β h), labels 1 - ε and ε.

    At the start -ln 2 - (ln(1 - ε) + ln ε) / 2. Without smoothing ε is 0.001: 0 has no logarithm.
    """
    share = label_smoothing or 1e-3
    right, wrong = nn.log_sigmoid(beta * gains.h), nn.log_sigmoid(-beta * gains.h)
    found: mx.array = mx.exp(right) * (right - math.log(1 - share)) + mx.exp(wrong) * (
        wrong - math.log(share)
    )
    return found


def nca_pair(gains: Gains, beta: float) -> mx.array:
    """NCA, Chen et al. 2024 (arXiv:2402.05369), for pairs. At the start 2 ln 2.

    It holds the likelihood of the chosen response, where DPO only widens the difference.
    """
    chosen, rejected = beta * gains.chosen, beta * gains.rejected
    spread = nn.log_sigmoid(-chosen) + nn.log_sigmoid(-rejected)
    return mx.negative(nn.log_sigmoid(chosen) + 0.5 * spread)


def bco_pair(gains: Gains, beta: float) -> mx.array:
    """BCO, Jung et al. 2024 (arXiv:2404.04656), for pairs without the shift. At the start 2 ln 2."""
    right, wrong = nn.log_sigmoid(beta * gains.chosen), nn.log_sigmoid(-beta * gains.rejected)
    return mx.negative(right + wrong)


def sppo_hard(gains: Gains, beta: float) -> mx.array:
    """SPPO, Wu et al. 2024 (arXiv:2405.00675), with the label's win rates 1 and 0.

    Each gain is drawn to ±1/(2β). At the start 2 (1/(2β))².
    """
    goal = 1 / (2 * beta)
    return mx.square(gains.chosen - goal) + mx.square(gains.rejected + goal)


def apo_zero(gains: Gains, beta: float) -> mx.array:
    """APO-zero, D'Oosterlinck et al. 2024 (arXiv:2408.06266), for chosen responses better than
    what the model writes. At the start 1."""
    return mx.sigmoid(-beta * gains.chosen) + mx.sigmoid(beta * gains.rejected)


def apo_down(gains: Gains, beta: float) -> mx.array:
    """APO-down, D'Oosterlinck et al. 2024 (arXiv:2408.06266), for models better than both
    responses: both become less likely. At the start 1."""
    return mx.sigmoid(beta * gains.chosen) + mx.sigmoid(-beta * gains.h)


def discopop(gains: Gains, beta: float) -> mx.array:
    """DiscoPOP, Lu et al. 2024 (arXiv:2406.08414): DPO's loss and an exponential one, blended by
    σ(β h / 0.05). At the start (ln 2 + 1) / 2.

    It is not convex: at the very start it falls towards a smaller margin, and beyond β h = 0.08 towards
    a larger one, as the paper says. Which way a pair goes is decided by the first steps.
    """
    x = beta * gains.h
    blend = nn.log_sigmoid(x / DISCOPOP_TEMPERATURE)
    # σ(x / τ) e^-x in one exponent, which cannot overflow
    logistic = mx.sigmoid(-x / DISCOPOP_TEMPERATURE) * nn.log_sigmoid(x)
    return mx.subtract(mx.exp(blend - x), logistic)


_PLAIN: Mapping[str, Callable[[Gains, float], mx.array]] = {
    "hinge": hinge,
    "ipo": ipo,
    "sigmoid_norm": sigmoid_norm,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
}
"""Losses without keys of their own."""


def f_score(gain: mx.array, divergence: FDivergence) -> mx.array:
    """Turn a gain log u, u = π/ref, into f'(u), by which an f-divergence rewards it; shape unchanged.

    Wang et al. 2023, f-DPO (arXiv:2309.16240), table 1: reverse KL log u, forward KL -1/u, Jensen and
    Shannon's log(2u / (1 + u)), α = 1/2 -2 / √u. Constants cancel between the two responses.
    """
    if divergence == "reverse_kl":
        return gain
    if divergence == "forward_kl":
        return mx.negative(mx.exp(mx.minimum(-gain, LARGEST_EXPONENT)))
    if divergence == "js":
        return mx.negative(mx.logaddexp(0.0, -gain))
    return mx.multiply(-2.0, mx.exp(mx.minimum(-gain / 2, LARGEST_EXPONENT)))


def orpo_loss(chosen: mx.array, rejected: mx.array, *, beta: float) -> mx.array:
    """Compute the preference part of each pair's loss, (B,), from its log odds ratio, without a reference.

    ORPO, Hong et al. 2024 (arXiv:2403.07691), eq. 7, times λ: -λ log σ(log (odds(chosen) /
    odds(rejected))), odds(p) = p / (1 - p). Its likelihood term is `sft_weight` of the phase.

    Args:
        chosen, rejected: (B,) mean log-probabilities of a token, in nats.
        beta: weight of the preference: λ of the paper.
    """
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    return mx.negative(beta * nn.log_sigmoid(log_odds))


def _log_odds(logps: mx.array) -> mx.array:
    """Compute log (p / (1 - p)) of log p, also where p is close to 1."""
    logps = mx.minimum(logps, NEAR_CERTAIN)
    return logps - mx.log(-mx.expm1(logps))


def simpo_loss(
    chosen: mx.array, rejected: mx.array, *, beta: float, gamma_beta_ratio: float
) -> mx.array:
    """Compute the loss of each pair, (B,), from token means alone, without a reference.

    SimPO, Meng et al. 2024 (arXiv:2405.14734): -log σ(β (mean_w - mean_l) - γ). There is no
    likelihood term.

    Args:
        chosen, rejected: (B,) mean log-probabilities of a token, in nats.
        beta: scale of the rewards.
        gamma_beta_ratio: γ / β, the target margin in nats a token.
    """
    return mx.negative(nn.log_sigmoid(beta * (chosen - rejected - gamma_beta_ratio)))


def cpo_loss(chosen: mx.array, rejected: mx.array, *, beta: float) -> mx.array:
    """Compute the preference part of each pair's loss, (B,), without a reference.

    CPO, Xu et al. 2024 (arXiv:2401.08417): -log σ(β (log π(chosen) - log π(rejected))). Its
    likelihood term is `sft_weight` of the phase.

    Args:
        chosen, rejected: (B,) summed log-probabilities, in nats.
        beta: scale of the rewards.
    """
    return mx.negative(nn.log_sigmoid(beta * (chosen - rejected)))


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


def initial_preference_loss(
    loss: PreferenceLoss, beta: float, label_smoothing: float = 0.0
) -> float:
    """Return the loss of each pair while the policy is the reference: both gains are 0."""
    at_zero = {
        "hinge": 1.0,
        "ipo": (1 / (2 * beta)) ** 2,
        "nca_pair": 2 * math.log(2),
        "bco_pair": 2 * math.log(2),
        "sppo_hard": 2 * (1 / (2 * beta)) ** 2,
        "apo_zero": 1.0,
        "apo_down": 1.0,
        "discopop": (math.log(2) + 1) / 2,
    }
    if loss == "exo_pair":
        share = label_smoothing or 1e-3
        return -math.log(2) - (math.log(1 - share) + math.log(share)) / 2
    return at_zero.get(loss, math.log(2))
