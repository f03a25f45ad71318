"""Paired statistics: against hand-worked values, a formula, and simulated data."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forty2.benchmark import stats
from forty2.benchmark.stats import Interval, Verdict
from forty2.errors import BenchmarkError


def test_standard_error_divides_by_n_minus_one() -> None:
    """1, 2, 3, 6: mean 3, squares 4+1+0+9 = 14, sd √(14/3), / √4."""
    assert stats.stderr([1.0, 2.0, 3.0, 6.0]) == pytest.approx(math.sqrt(14 / 3) / 2)
    assert stats.stderr([1.0, 3.0]) == pytest.approx(math.sqrt(2) / math.sqrt(2))
    with pytest.raises(BenchmarkError, match="no standard error"):
        stats.stderr([1.0])


def test_wilsons_interval_is_that_of_a_worked_example() -> None:
    """8 of 10: (0.8 + 0.1921 ± 1.96 √(0.016 + 0.0096)) / 1.3841, with z² = 3.8415."""
    assert stats.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert (
        stats.wilson(10, 10)[0] == pytest.approx(0.7225, abs=1e-4)
        and stats.wilson(10, 10)[1] == 1.0
    )
    assert stats.wilson(0, 10)[0] == pytest.approx(0, abs=1e-12) and stats.wilson(0, 10)[
        1
    ] == pytest.approx(0.2775, abs=1e-4)


def test_auc_of_perfect_constant_and_inverted_scores() -> None:
    high, low = [2.0, 3.0, 4.0], [0.0, 1.0]
    assert stats.auc(high, low) == 1.0
    assert stats.auc(low, high) == 0.0
    assert stats.auc([1.0] * 3, [1.0] * 2) == 0.5
    # 3 beats both, 1 ties one and beats none, of 2 · 2 comparisons: (2 + 0.5) / 4
    assert stats.auc([3.0, 1.0], [1.0, 2.0]) == pytest.approx(2.5 / 4)
    for bad in ([], [math.nan], [math.inf]):
        with pytest.raises(BenchmarkError):
            stats.auc(bad, low)


def test_the_interval_of_an_auc_holds_what_is_true_and_is_never_a_point() -> None:
    rng = np.random.default_rng(1)
    above, below = rng.normal(1, 1, 100), rng.normal(0, 1, 100)  # Φ(1 / √2) = 0.760
    low, high = stats.bootstrap_auc(above, below)
    assert low < 0.760 < high and 0.1 < high - low < 0.2
    # equal noise in both of a pair goes up and down together, so less is unsure
    twin = below + rng.normal(0.5, 0.1, 100)
    apart, together = (stats.bootstrap_auc(twin, below, paired=p) for p in (False, True))
    assert together.high - together.low < (apart.high - apart.low) / 2
    perfect = stats.bootstrap_auc([1.0] * 20, [0.0] * 30)
    assert perfect == pytest.approx((1 - stats.unseen(20), 1.0))
    low, high = stats.bootstrap_auc([1.0] * 20, [1.0] * 30)
    assert low < 0.5 < high


def test_detectable_difference_by_hand() -> None:
    """z(0.975) + z(0.8) = 1.95996 + 0.84162; standard error 1/√4 of ±1 ... sd √(4/3)."""
    differences = [1.0, -1.0, 1.0, -1.0]
    assert stats.detectable(differences) == pytest.approx(2.80158 * math.sqrt(4 / 3) / 2, rel=1e-5)


def test_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(5)
    n, spread = 200, 0.4
    change = (stats.detectable(rng.normal(0, spread, size=100_000)) or 0) * math.sqrt(100_000 / n)
    drawn = rng.normal(change, spread, size=(2000, n))
    error = drawn.std(axis=1, ddof=1) / math.sqrt(n)
    assert np.mean(drawn.mean(axis=1) / error > 1.96) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 32),
        (0, 5, 2 / 32),
        (6, 2, 2 * (1 + 8 + 28) / 256),
    ],
)
def test_mcnemar_by_hand(better: int, worse: int, p: float) -> None:
    assert stats.mcnemar(better, worse) == pytest.approx(p)


def test_mcnemar_is_the_binomial_formula() -> None:
    """Doubled lower tail, with log-gamma coefficients: another road to the same number."""
    for better, worse in ((10, 25), (40, 41), (120, 180), (408, 409)):
        n = better + worse
        tail = sum(
            math.exp(
                math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
            )
            for k in range(min(better, worse) + 1)
        )
        assert stats.mcnemar(better, worse) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_mcnemar_on_thousands_of_questions_stays_finite() -> None:
    assert stats.mcnemar(7000, 7042) == pytest.approx(0.73, abs=0.01)


def test_bootstrap_is_seeded() -> None:
    differences = np.random.default_rng(0).normal(size=50)
    assert stats.bootstrap(differences) == stats.bootstrap(differences)
    assert stats.bootstrap(differences) != stats.bootstrap(differences, seed=1)


def test_random_signs_are_seeded() -> None:
    differences = np.random.default_rng(0).normal(0.1, 1.0, size=50)
    assert stats.sign_flips(differences) == stats.sign_flips(differences)
    assert stats.sign_flips(differences) != stats.sign_flips(differences, seed=1)


def test_as_many_resamples_are_drawn_as_were_asked_for() -> None:
    """They are drawn by the thousand, to bound memory; the last draw is smaller."""
    differences = np.random.default_rng(0).normal(size=20)
    drawn = np.random.default_rng(5).integers(20, size=(1500, 20))
    wanted = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975])
    assert stats.bootstrap(differences, resamples=1500, seed=5) == pytest.approx(tuple(wanted))
    assert stats.sign_flips([0.0, 0.0, 0.0], resamples=1500) == 1.0


def test_the_interval_of_a_ratio_draws_items_with_both_their_parts() -> None:
    rng = np.random.default_rng(3)
    above, below = rng.normal(2.0, 1.0, size=4), np.array([3.0, 0.0, 1.0, 0.0])
    drawn = np.random.default_rng(5).integers(4, size=(2500, 4))
    sums = below[drawn].sum(axis=1)
    assert not sums.all()  # some draws have no ratio
    ratios = above[drawn].sum(axis=1)[sums > 0] / sums[sums > 0]
    wanted = tuple(np.quantile(ratios, [0.025, 0.975]))
    found = stats.bootstrap_ratio(above, below, resamples=2500, seed=5)
    assert found == pytest.approx(wanted)
    assert stats.bootstrap_ratio(above, below) == stats.bootstrap_ratio(
        above, below, seed=stats.SEED
    )
    with pytest.raises(BenchmarkError, match="no item counts"):
        stats.bootstrap_ratio([1.0, 2.0], [0.0, 0.0])


def test_a_ratio_to_ones_is_a_mean_and_items_that_do_not_count_are_no_evidence() -> None:
    values = np.random.default_rng(0).uniform(size=20)
    mean = stats.bootstrap(values, least=0.0, most=1.0)
    assert stats.bootstrap_ratio(values, np.ones(20), least=0.0, most=1.0) == pytest.approx(mean)
    low, high = stats.bootstrap_ratio([0.5] * 6 + [0.0] * 9, [1.0] * 6 + [0.0] * 9, least=0, most=2)
    missed = 1 - 0.025 ** (1 / 6)
    assert (low, high) == pytest.approx((0.5 - 0.5 * missed, 0.5 + 1.5 * missed))


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    differences = np.random.default_rng(1).normal(0.1, 1.0, size=400)
    mean, error = differences.mean(), stats.stderr(differences)
    low, high = stats.bootstrap(differences)
    assert low == pytest.approx(mean - 1.96 * error, abs=0.05 * error * 2)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.05 * error * 2)


def test_bootstrap_covers_the_truth_95_times_in_100() -> None:
    """On skewed, clustered differences such as MC1's: -1, 0 or 1."""
    rng = np.random.default_rng(2)
    truth = 0.15 - 0.08
    covered = 0
    for seed in range(400):
        drawn = rng.choice([1.0, -1.0, 0.0], p=[0.15, 0.08, 0.77], size=150)
        low, high = stats.bootstrap(drawn, resamples=1000, seed=seed)
        covered += int(low <= truth <= high)
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize("n", [6, 20, 100, 367])
def test_results_alike_have_room_for_what_few_questions_miss(n: int) -> None:
    """One loss in as many questions as were asked goes unseen in 37% of cases."""
    low, high = stats.bootstrap([0.0] * n, least=-1, most=1)
    assert -low == high == pytest.approx(1 - 0.025 ** (1 / n))
    assert (1 - high) ** n == pytest.approx(0.025)
    assert stats.verdict(Interval(low, high), 0.01, n) == "inconclusive"
    certain = stats.bootstrap([0.0] * 368, least=-1, most=1)
    assert stats.verdict(certain, 0.01, 368) == "no tax"


def test_equal_differences_have_room_on_both_sides_as_far_as_their_bounds() -> None:
    low, high = stats.bootstrap([0.25] * 10, least=-1, most=1)
    missed = 1 - 0.025**0.1
    assert low == pytest.approx(0.25 - 1.25 * missed) and high == pytest.approx(
        0.25 + 0.75 * missed
    )


def test_no_tax_is_seldom_said_of_a_loss_beyond_the_margin() -> None:
    rng = np.random.default_rng(3)
    for n, loss in ((20, 0.05), (50, 0.04), (100, 0.02), (800, 0.02)):
        said = 0
        for _ in range(200):
            drawn = -(rng.random(n) < loss).astype(float)
            found = stats.bootstrap(drawn, least=-1, most=1, resamples=400)
            said += stats.verdict(found, 0.01, n) in ("no tax", "gain", "no change")
        assert said <= 0.05 * 200


def test_what_has_a_spread_keeps_its_interval() -> None:
    drawn = np.random.default_rng(4).choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=200)
    assert stats.bootstrap(drawn, least=-1, most=1) == stats.bootstrap(drawn)
    few = [-3.0, -3.1, -2.9]  # log-probabilities: below 0, and no saying how far
    assert stats.bootstrap(few, most=0.0) == stats.bootstrap(few)


def test_without_a_spread_nothing_tells_what_is_detectable() -> None:
    assert stats.detectable([0.0] * 30) is None


def test_random_signs_of_ones_are_mcnemar() -> None:
    for better, worse in ((12, 3), (40, 25), (7, 7)):
        differences = [1.0] * better + [-1.0] * worse + [0.0] * 30
        drawn = stats.sign_flips(differences, resamples=40_000)
        assert drawn == pytest.approx(stats.mcnemar(better, worse), abs=0.01)


def test_random_signs_by_hand() -> None:
    """Of the eight choices of signs of 1, 2, 4 two are as far from 0 as all plus: all or none."""
    assert stats.sign_flips([1.0, 2.0, 4.0], resamples=40_000) == pytest.approx(2 / 8, abs=0.01)
    assert stats.sign_flips([0.0, 0.0, 0.0]) == 1.0
    assert stats.sign_flips([1.0] * 60, resamples=999) == 1 / 1000  # never 0


def test_random_signs_find_nothing_in_nothing_one_time_in_twenty() -> None:
    rng = np.random.default_rng(6)
    ps = [stats.sign_flips(rng.normal(size=40), resamples=400, seed=n) for n in range(600)]
    assert np.mean(np.array(ps) < 0.05) == pytest.approx(0.05, abs=0.025)


def test_holm_by_hand() -> None:
    """Holm 1979: 4 · 0.01, then 3 · 0.02, 2 · 0.02 (not below the one before), 1 · 0.9."""
    assert stats.holm([0.02, 0.9, 0.01, 0.02]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert stats.holm([0.5, 0.6]) == [1.0, 1.0]
    assert stats.holm([0.3]) == [0.3]
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_corrects_upwards_in_order_and_no_more_than_bonferroni(ps: list[float]) -> None:
    corrected = stats.holm(ps)
    for p, more in zip(ps, corrected, strict=True):
        assert p <= more <= min(1.0, len(ps) * p)
    ranked = sorted(range(len(ps)), key=ps.__getitem__)
    assert [corrected[i] for i in ranked] == sorted(corrected)


def test_holm_keeps_the_chance_of_any_false_find() -> None:
    """Of ten metrics that did not change, some p is below 5% in 40% of cases; corrected, in 5%."""
    ps = np.random.default_rng(7).random((4000, 10))
    assert np.mean(ps.min(axis=1) < 0.05) == pytest.approx(0.4, abs=0.03)
    found = np.mean([min(stats.holm(row)) < 0.05 for row in ps.tolist()])
    assert found == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize(
    ("kl", "changed", "expected"),
    [
        (0.0, 0.0, True),
        (9e-6, 0.01, True),
        (stats.KL_NEAR_ZERO, 0.0, False),  # the smallest that counts
        (2e-5, 0.0, False),  # it answers alike, but is another model
        (0.0, 0.02, False),
        (None, 0.0, False),  # not known
        (math.nan, 0.0, False),
    ],
)
def test_no_change_takes_both(kl: float | None, changed: float, expected: bool) -> None:
    assert stats.unchanged(kl, changed) is expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.001, 0.05, "gain"),
        (0.0, 0.05, "no tax"),
        (-0.009, 0.05, "no tax"),
        (-0.009, -0.001, "no tax"),  # lost something, surely less than the margin
        (-0.01, 0.05, "inconclusive"),
        (-0.03, 0.04, "inconclusive"),
        (-0.05, 0.0, "inconclusive"),
        (-0.05, -0.001, "tax"),
    ],
)
def test_verdicts(low: float, high: float, expected: Verdict) -> None:
    assert stats.verdict(Interval(low, high), 0.01, 100) == expected
    assert stats.verdict(Interval(low, high), 0.01, 5) == "inconclusive"


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("gain", "gain", "tax"), "tax"),
        (("gain", "inconclusive", "gain"), "inconclusive"),
        (("no tax", "gain", "no tax"), "gain"),
        (("no tax", "no tax", "no tax"), "no tax"),
        (("no change", "no change"), "no change"),
    ],
)
def test_the_weakest_metric_speaks(verdicts: tuple[Verdict, ...], expected: Verdict) -> None:
    assert stats.overall(verdicts) == expected
