"""Preference losses: parity with NumPy float64, gradients by finite differences, known values."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from forty2.training.losses import (
    PREFERENCE_LOSSES,
    PairLogps,
    PreferenceLoss,
    initial_preference_loss,
    preference_loss,
)
from forty2.training.objectives.dpo import DpoPhase

RNG = np.random.default_rng(0)
VALUES = [-np.abs(RNG.normal(20, 6, 7)) for _ in range(4)]
TOKENS = [RNG.integers(3, 12, 7), RNG.integers(3, 12, 7)]
CASES: list[tuple[PreferenceLoss, float]] = [
    ("sigmoid", 0.0),
    ("sigmoid", 0.2),
    ("hinge", 0.0),
    ("ipo", 0.0),
    ("dpop", 0.0),
]


def softplus(x: Any) -> Any:
    return np.logaddexp(0.0, x)


def numpy_loss(
    values: list[Any], loss: str, beta: float, smoothing: float, penalty: float = 50.0
) -> Any:
    """The papers' formulas, written out again in float64."""
    chosen, rejected = values[0] - values[2], values[1] - values[3]
    z = beta * (chosen - rejected)
    if loss == "sigmoid":
        return (1 - smoothing) * softplus(-z) + smoothing * softplus(z)
    if loss == "hinge":
        return np.maximum(0, 1 - z)
    if loss == "ipo":
        return (chosen / TOKENS[0] - rejected / TOKENS[1] - 1 / (2 * beta)) ** 2
    return softplus(-(z - beta * penalty * np.maximum(0, -chosen)))


def ours(values: list[mx.array], loss: PreferenceLoss, beta: float, smoothing: float) -> mx.array:
    return preference_loss(
        PairLogps(*values),
        loss=loss,
        beta=beta,
        label_smoothing=smoothing,
        chosen_tokens=mx.array(TOKENS[0]),
        rejected_tokens=mx.array(TOKENS[1]),
    )


@pytest.mark.parametrize(("loss", "smoothing"), CASES)
@pytest.mark.parametrize("beta", [0.05, 0.1, 0.7])
def test_losses_agree_with_float64(loss: PreferenceLoss, smoothing: float, beta: float) -> None:
    got = ours([mx.array(v.astype(np.float32)) for v in VALUES], loss, beta, smoothing)
    np.testing.assert_allclose(
        np.asarray(got), numpy_loss(VALUES, loss, beta, smoothing), rtol=2e-5, atol=1e-5
    )


@pytest.mark.parametrize(("loss", "smoothing"), CASES)
def test_gradients_agree_with_finite_differences(loss: PreferenceLoss, smoothing: float) -> None:
    beta, step = 0.3, 1e-5
    arrays = [mx.array(v.astype(np.float32)) for v in VALUES]
    gradients = mx.grad(lambda *a: ours(list(a), loss, beta, smoothing).sum(), argnums=[0, 1])(
        *arrays
    )
    for side, gradient in enumerate(gradients):
        for row in range(7):
            shifted = []
            for sign in (1, -1):
                moved = [v.copy() for v in VALUES]
                moved[side][row] += sign * step
                shifted.append(numpy_loss(moved, loss, beta, smoothing).sum())
            wanted = (shifted[0] - shifted[1]) / (2 * step)
            assert float(gradient[row]) == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_the_policy_at_its_reference_has_the_known_loss(loss: PreferenceLoss) -> None:
    same = [mx.array(VALUES[0]), mx.array(VALUES[1])] * 2
    expected = initial_preference_loss(loss, 0.1)
    np.testing.assert_allclose(np.asarray(ours(same, loss, 0.1, 0.0)), expected, rtol=1e-6)
    assert initial_preference_loss("sigmoid", 0.1) == math.log(2)


@pytest.mark.parametrize(("loss", "smoothing"), CASES)
def test_descent_raises_the_chosen_and_lowers_the_rejected(
    loss: PreferenceLoss, smoothing: float
) -> None:
    """A negated loss also moves parameters; only the direction tells."""
    values = [mx.array([-20.0]), mx.array([-20.0]), mx.array([-20.0]), mx.array([-20.0])]
    tokens = mx.array([5])
    chosen, rejected = mx.grad(
        lambda c, r: preference_loss(
            PairLogps(c, r, *values[2:]),
            loss=loss,
            beta=0.1,
            label_smoothing=smoothing,
            chosen_tokens=tokens,
            rejected_tokens=tokens,
        ).sum(),
        argnums=[0, 1],
    )(*values[:2])
    assert float(chosen[0]) < 0 < float(rejected[0])


def test_dpop_penalises_a_chosen_response_that_became_less_likely() -> None:
    worse = PairLogps(*(mx.array([v]) for v in (-22.0, -30.0, -20.0, -20.0)))
    plain = preference_loss(worse, loss="sigmoid", beta=0.1)
    assert float(preference_loss(worse, loss="dpop", beta=0.1)[0]) > float(plain[0])


def test_smoothing_is_off_unless_asked_for() -> None:
    worse = PairLogps(*(mx.array([v]) for v in (-22.0, -30.0, -20.0, -20.0)))
    plain = preference_loss(worse, loss="sigmoid", beta=0.1)
    assert (
        plain.item() == preference_loss(worse, loss="sigmoid", beta=0.1, label_smoothing=0).item()
    )


@pytest.mark.parametrize("missing", ["chosen_tokens", "rejected_tokens"])
def test_ipo_needs_both_lengths(missing: str) -> None:
    """It averages over tokens: one side's sum beside the other's mean would be neither."""
    logps = PairLogps(*(mx.array([v]) for v in (-22.0, -30.0, -20.0, -20.0)))
    lengths: dict[str, Any] = {"chosen_tokens": mx.array([4]), "rejected_tokens": mx.array([5])}
    with pytest.raises(ValueError, match="ipo needs"):
        preference_loss(logps, loss="ipo", beta=0.1, **{**lengths, missing: None})


@pytest.mark.parametrize(("loss", "smoothing"), CASES)
def test_a_phase_computes_the_loss_that_its_keys_name(
    loss: PreferenceLoss, smoothing: float
) -> None:
    keys: dict[str, Any] = {"loss": loss, "beta": 0.05, "label_smoothing": smoothing}
    phase = DpoPhase(objective="dpo", data="x", steps=1, lr=1e-3, dpop_lambda=2.0, **keys)
    logps = PairLogps(*(mx.array(v.astype(np.float32)) for v in VALUES))
    found = phase.losses(logps, mx.array(TOKENS[0]), mx.array(TOKENS[1]))
    wanted = numpy_loss(VALUES, loss, 0.05, smoothing, penalty=2.0)
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=2e-5, atol=1e-5)
    assert phase.initial_loss() == initial_preference_loss(loss, 0.05)
