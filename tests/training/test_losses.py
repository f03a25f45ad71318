"""Preference losses: value and gradient against NumPy in float64, known values at the start, direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from forty2.training.losses import (
    PREFERENCE_LOSSES,
    PairLogps,
    cpo_loss,
    f_score,
    initial_preference_loss,
    orpo_loss,
    preference_loss,
    simpo_loss,
)
from forty2.training.objectives.cpo import CpoPhase
from forty2.training.objectives.dpo import DpoPhase
from forty2.training.objectives.orpo import OrpoPhase
from forty2.training.objectives.simpo import SimpoPhase

Array = npt.NDArray[np.float64]
RNG = np.random.default_rng(0)
VALUES = [-np.abs(RNG.normal(20, 6, 7)) for _ in range(4)]
TOKENS = [RNG.integers(3, 12, 7).astype(float), RNG.integers(3, 12, 7).astype(float)]


class Pairs(NamedTuple):
    """Log-probabilities and lengths as the papers' formulas read them, in float64."""

    beta: float
    w: Array
    l: Array  # noqa: E741  (the papers' name)
    ref_w: Array
    ref_l: Array

    @property
    def gains(self) -> tuple[Array, Array]:
        return self.w - self.ref_w, self.l - self.ref_l

    @property
    def z(self) -> Array:
        return self.beta * (self.gains[0] - self.gains[1])


def softplus(x: Any) -> Any:
    return np.logaddexp(0.0, x)


def sigma(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def mean_gap(one: Pairs) -> Array:
    return np.asarray(one.gains[0] / TOKENS[0] - one.gains[1] / TOKENS[1])


def exo(one: Pairs, share: float) -> Array:
    q = sigma(one.z)
    return np.asarray(
        q * (np.log(q) - np.log(1 - share)) + (1 - q) * (np.log(1 - q) - np.log(share))
    )


def discopop(one: Pairs) -> Array:
    blend = sigma(one.z / 0.05)
    return np.asarray((1 - blend) * softplus(-one.z) + blend * np.exp(-one.z))


class Case(NamedTuple):
    loss: str
    keys: dict[str, Any]
    formula: Callable[[Pairs], Any]


def by_divergence(score: Callable[[Any], Any]) -> Callable[[Pairs], Any]:
    return lambda one: softplus(-one.beta * (score(one.gains[0]) - score(one.gains[1])))


CASES = [
    Case("sigmoid", {}, lambda p: softplus(-p.z)),
    Case("sigmoid", {"label_smoothing": 0.2}, lambda p: 0.8 * softplus(-p.z) + 0.2 * softplus(p.z)),
    Case(
        "robust",
        {"label_smoothing": 0.2},
        lambda p: (0.8 * softplus(-p.z) - 0.2 * softplus(p.z)) / 0.6,
    ),
    Case("hinge", {}, lambda p: np.maximum(0, 1 - p.z)),
    Case("ipo", {}, lambda p: (mean_gap(p) - 1 / (2 * p.beta)) ** 2),
    Case(
        "dpop",
        {"dpop_lambda": 2.0},
        lambda p: softplus(-(p.z - p.beta * 2 * np.maximum(0, -p.gains[0]))),
    ),
    Case("sigmoid_norm", {}, lambda p: softplus(-p.beta * mean_gap(p))),
    Case("exo_pair", {}, lambda p: exo(p, 0.001)),
    Case("exo_pair", {"label_smoothing": 0.1}, lambda p: exo(p, 0.1)),
    Case(
        "nca_pair",
        {},
        lambda p: (
            softplus(-p.beta * p.gains[0])
            + 0.5 * softplus(p.beta * p.gains[0])
            + 0.5 * softplus(p.beta * p.gains[1])
        ),
    ),
    Case("bco_pair", {}, lambda p: softplus(-p.beta * p.gains[0]) + softplus(p.beta * p.gains[1])),
    Case(
        "sppo_hard",
        {},
        lambda p: (p.gains[0] - 1 / (2 * p.beta)) ** 2 + (p.gains[1] + 1 / (2 * p.beta)) ** 2,
    ),
    Case("apo_zero", {}, lambda p: 1 - sigma(p.beta * p.gains[0]) + sigma(p.beta * p.gains[1])),
    Case("apo_down", {}, lambda p: sigma(p.beta * p.gains[0]) + 1 - sigma(p.z)),
    Case("discopop", {}, discopop),
    Case("sigmoid", {"f_divergence": "forward_kl"}, by_divergence(lambda d: -np.exp(-d))),
    Case("sigmoid", {"f_divergence": "js"}, by_divergence(lambda d: -softplus(-d))),
    Case("sigmoid", {"f_divergence": "alpha"}, by_divergence(lambda d: -2 * np.exp(-d / 2))),
]


def named(case: Case) -> str:
    return " ".join([case.loss, *(f"{key}={value}" for key, value in case.keys.items())])


def ours(values: list[mx.array], case: Case, beta: float) -> mx.array:
    kind = values[0].dtype
    return preference_loss(
        PairLogps(*values),
        loss=case.loss,  # type: ignore[arg-type]
        beta=beta,
        chosen_tokens=mx.array(TOKENS[0], kind),
        rejected_tokens=mx.array(TOKENS[1], kind),
        **case.keys,
    )


def in_float64(values: list[Any]) -> list[mx.array]:
    return [mx.array(value, mx.float64) for value in values]


def gradients(loss: Callable[..., Any], values: list[Any], sides: int) -> list[Any]:
    """The gradient of the summed loss by central differences, which in float64 are right to 1e-7."""
    found = []
    for side in range(sides):
        rows = []
        for row in range(len(values[side])):
            both = []
            for sign in (1, -1):
                moved = [value.copy() for value in values]
                moved[side][row] += sign * 1e-5
                both.append(float(loss(*moved).sum()))
            rows.append((both[0] - both[1]) / 2e-5)
        found.append(np.array(rows))
    return found


@pytest.mark.parametrize("case", CASES, ids=named)
@pytest.mark.parametrize("beta", [0.05, 0.3])
def test_value_and_gradient_are_the_paper_s_in_float64(case: Case, beta: float) -> None:
    with mx.stream(mx.cpu):
        values = in_float64(VALUES)
        got = np.array(ours(values, case, beta))
        found = mx.grad(lambda *a: ours(list(a), case, beta).sum(), argnums=[0, 1])(*values)
        found = [np.array(one) for one in found]

    def formula(*arrays: Array) -> Any:
        return case.formula(Pairs(beta, *arrays))

    np.testing.assert_allclose(got, formula(*VALUES), rtol=1e-6, atol=1e-9)
    for one, wanted in zip(found, gradients(formula, VALUES, 2), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_in_fp32_the_loss_is_the_same(case: Case) -> None:
    got = ours([mx.array(value.astype(np.float32)) for value in VALUES], case, 0.1)
    wanted = case.formula(Pairs(0.1, *VALUES))
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=2e-5, atol=1e-5)


def test_every_loss_has_a_case() -> None:
    assert {case.loss for case in CASES} == {*PREFERENCE_LOSSES}


@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_policy_at_its_reference_has_the_known_loss(case: Case) -> None:
    same = [mx.array(VALUES[0]), mx.array(VALUES[1])] * 2
    smoothing = case.keys.get("label_smoothing", 0.0)
    expected = initial_preference_loss(case.loss, 0.1, smoothing)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.asarray(ours(same, case, 0.1)), expected, rtol=1e-6)


def test_the_known_losses_at_the_start() -> None:
    assert initial_preference_loss("sigmoid", 0.1) == math.log(2)
    assert initial_preference_loss("sppo_hard", 0.1) == pytest.approx(50)
    assert initial_preference_loss("discopop", 0.1) == pytest.approx(0.5 * math.log(2) + 0.5)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_descent_widens_the_margin(case: Case) -> None:
    """A negated loss also moves parameters; only the direction tells."""
    start = [mx.full(7, -20.0) for _ in range(4)]
    chosen, rejected = mx.grad(
        lambda c, r: ours([c, r, *start[2:]], case, 0.1).sum(), argnums=[0, 1]
    )(*start[:2])
    if case.loss == "discopop":  # as its paper says, it falls the other way at the very start
        assert (np.asarray(rejected - chosen) < 0).all()
        return
    assert (np.asarray(rejected - chosen) > 0).all()
    if case.loss == "apo_down":
        assert (np.asarray(rejected) > 0).all()  # and the chosen response does not rise by it
    else:
        assert (np.asarray(chosen) < 0).all() and (np.asarray(rejected) > 0).all()


@pytest.mark.parametrize("case", CASES, ids=named)
@pytest.mark.parametrize("far", [-2000.0, 2000.0])
def test_no_loss_or_gradient_overflows(case: Case, far: float) -> None:
    values = [mx.full(7, -3000.0), mx.full(7, -3000.0 - far), mx.full(7, -3000.0)]
    values.append(values[2])
    found = mx.grad(lambda *a: ours(list(a), case, 0.1).sum(), argnums=[0, 1])(*values)
    assert np.isfinite(np.asarray(ours(values, case, 0.1))).all()
    assert all(np.isfinite(np.asarray(one)).all() for one in found)


def test_dpop_penalises_a_chosen_response_that_became_less_likely() -> None:
    worse = [mx.full(7, value) for value in (-22.0, -30.0, -20.0, -20.0)]
    plain, dpop = (ours(worse, Case(name, {}, len), 0.1) for name in ("sigmoid", "dpop"))
    assert float(dpop[0]) > float(plain[0])


def test_an_f_divergence_s_score_leaves_reverse_kl_as_it_is() -> None:
    gain = mx.array([-3.0, 0.0, 2.0])
    assert f_score(gain, "reverse_kl") is gain


# --- without a reference ---


def log_odds(mean: Any) -> Any:
    return mean - np.log(-np.expm1(mean))


FREE: dict[str, tuple[Callable[..., mx.array], Callable[..., Any]]] = {
    "orpo": (
        lambda c, r: orpo_loss(c, r, beta=0.3),
        lambda c, r: 0.3 * softplus(-(log_odds(c) - log_odds(r))),
    ),
    "simpo": (
        lambda c, r: simpo_loss(c, r, beta=2.5, gamma_beta_ratio=0.55),
        lambda c, r: softplus(-(2.5 * (c - r) - 2.5 * 0.55)),
    ),
    "cpo": (lambda c, r: cpo_loss(c, r, beta=0.1), lambda c, r: softplus(-0.1 * (c - r))),
}


@pytest.mark.parametrize("name", FREE)
def test_a_loss_without_a_reference_is_the_paper_s_in_float64(name: str) -> None:
    loss, formula = FREE[name]
    values = [value / 10 for value in VALUES[:2]]
    with mx.stream(mx.cpu):
        arrays = in_float64(values)
        got = np.array(loss(*arrays))
        found = mx.grad(lambda *a: loss(*a).sum(), argnums=[0, 1])(*arrays)
        found = [np.array(one) for one in found]
    np.testing.assert_allclose(got, formula(*values), rtol=1e-6)
    for one, wanted in zip(found, gradients(formula, values, 2), strict=True):
        np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("chosen", [-1e-9, 0.0, -1e-3, -50.0])
def test_orpo_is_finite_where_a_response_is_certain(chosen: float) -> None:
    values = mx.array([chosen]), mx.array([-2.0])
    found = mx.grad(lambda *a: orpo_loss(*a, beta=0.1).sum(), argnums=[0, 1])(*values)
    assert math.isfinite(float(orpo_loss(*values, beta=0.1)[0]))
    assert all(math.isfinite(float(one[0])) for one in found)


# --- the phases ---


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_phase_computes_the_loss_that_its_keys_name(case: Case) -> None:
    keys: dict[str, Any] = {"loss": case.loss, "beta": 0.05, **case.keys}
    phase = DpoPhase(objective="dpo", data="x", steps=1, lr=1e-3, **keys)
    logps = PairLogps(*(mx.array(value.astype(np.float32)) for value in VALUES))
    found = phase.losses(logps, *(mx.array(one) for one in TOKENS))
    wanted = case.formula(Pairs(0.05, *VALUES))
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=2e-5, atol=1e-5)
    smoothing = case.keys.get("label_smoothing", 0.0)
    assert phase.initial_loss() == initial_preference_loss(case.loss, 0.05, smoothing)  # type: ignore[arg-type]


PHASES: dict[str, Any] = {"orpo": OrpoPhase, "simpo": SimpoPhase, "cpo": CpoPhase}


@pytest.mark.parametrize("name", PHASES)
def test_a_phase_without_a_reference_reads_token_means_or_sums(name: str) -> None:
    phase = PHASES[name](objective=name, data="x", steps=1, lr=1e-3, beta=0.3)
    policy = [mx.array(value.astype(np.float32)) for value in VALUES[:2]]
    logps = PairLogps(*policy, *map(mx.zeros_like, policy))
    tokens = [mx.array(one) for one in TOKENS]
    sides = [VALUES[n] / (TOKENS[n] if name != "cpo" else 1.0) for n in (0, 1)]
    wanted = {
        "orpo": lambda c, r: 0.3 * softplus(-(log_odds(c) - log_odds(r))),
        "simpo": lambda c, r: softplus(-0.3 * (c - r - 0.55)),
        "cpo": lambda c, r: softplus(-0.3 * (c - r)),
    }[name](*sides)
    np.testing.assert_allclose(np.asarray(phase.losses(logps, *tokens)), wanted, rtol=2e-5)
    for found, side in zip(phase.rewards(logps, *tokens), sides, strict=True):
        np.testing.assert_allclose(np.asarray(found), 0.3 * side, rtol=2e-5)
    assert not phase.needs_reference and "kl" not in phase.metrics
    assert phase.sft_weight == (0.0 if name == "simpo" else 1.0)


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"loss": "hinge", "label_smoothing": 0.1}, "only sigmoid, robust and exo_pair have it"),
        ({"loss": "robust"}, "robust needs the share of wrong labels"),
        ({"loss": "ipo", "f_divergence": "js"}, "ipo is made for reverse_kl"),
        ({"loss": "ipo", "dpop_lambda": 5.0}, "only dpop has it, not ipo"),
    ],
)
def test_keys_that_a_loss_does_not_read_are_refused(keys: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DpoPhase(objective="dpo", data="x", steps=1, lr=1e-3, beta=0.1, **keys)
