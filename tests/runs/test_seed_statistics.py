"""Intervals over seeds and items: where they lie, what they cover, and the verdicts from them."""

from __future__ import annotations

import numpy as np
import pytest

from forty2.benchmark.stats import Values, bootstrap
from forty2.runs.seed_statistics import changes_of, insight, interval, score_of


def test_with_seeds_alike_the_interval_is_that_of_the_items() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert interval(np.stack([values] * 3)) == bootstrap(values)


def test_with_items_alike_the_interval_is_student_s() -> None:
    """t of 2 degrees of freedom is 4.303 at 97.5%: mean 0 and standard error 1/√3 of -1, 0, 1."""
    found = interval(np.repeat([[-1.0], [0.0], [1.0]], 20, axis=1))
    assert found == pytest.approx((-4.303 / np.sqrt(3), 4.303 / np.sqrt(3)), rel=0.08)


def test_items_that_flicker_are_not_taken_for_a_spread_between_seeds() -> None:
    """Seeds that differ by no more than their items explain: no wider than items alone, nearly."""
    rng = np.random.default_rng(1)
    flicker = rng.normal(size=(3, 400))
    flicker -= flicker.mean(axis=1, keepdims=True)
    assert interval(flicker) == bootstrap(flicker.mean(axis=0))


@pytest.mark.parametrize("between", [0.0, 0.05])
def test_the_interval_covers_the_truth_as_often_as_it_says(between: float) -> None:
    rng = np.random.default_rng(2)
    trials, covered = 200, 0
    for _ in range(trials):
        found = interval(
            rng.normal(0, between, (3, 1))
            + rng.normal(0, 0.3, (1, 60))
            + rng.normal(0, 0.3, (3, 60))
        )
        covered += found.low <= 0 <= found.high
    assert 0.91 * trials <= covered


def test_an_interval_stays_where_its_metric_can_be() -> None:
    """Two seeds that differ leave everything open, and no more than everything."""
    told = np.repeat([[0.1], [0.5]], 10, axis=1)
    assert score_of("mc2", told)[:3] == pytest.approx((0.3, 0, 1))
    assert score_of("KL", told).low == 0 and score_of("KL", told).high > 1
    assert score_of("log p of texts", -told).high == 0
    change = changes_of({"mc2": 0 * told}, {"mc2": told}, 0.01, same=False)["mc2"]
    assert change[1:3] == (-1, 1)


def test_changes_are_paired_and_have_the_verdicts_of_compare() -> None:
    rng = np.random.default_rng(3)
    before = rng.normal(size=(3, 100))
    up, level = before + 0.1, before + rng.normal(0, 1e-3, before.shape)
    scores = {"up": before, "level": before, "down": up, "KL": before}
    after = {"up": up, "level": level, "down": before, "KL": up}
    found = changes_of(scores, after, 0.05, same=False)
    assert {name: one.verdict for name, one in found.items()} == {
        "up": "gain",
        "level": "no tax",
        "down": "tax",
    }
    assert found["up"].difference == pytest.approx(0.1)
    assert found["up"].low > 0.05 and found["up"].high < 0.15  # questions differ far more
    assert score_of("KL", before**2).high - score_of("KL", before**2).low > 0.2
    assert {one.verdict for one in changes_of(scores, after, 0.05, same=True).values()} == {
        "no change"
    }


def leaking(*shares: float) -> list[Values]:
    """Leaks of three seeds on 40 prompts, of each share the first ones, and one more or less."""
    return [
        np.stack([np.arange(40) < round(40 * share) + seed for seed in (-1, 0, 1)]).astype(float)
        for share in shares
    ]


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ((0.1, 0.5, 0.1), "holds"),
        ((0.5, 0.1, 0.1), "does not hold"),
        ((0.1, 0.4, 0.8), "does not hold"),
        ((0.1, 0.5, 0.5), "cannot be told"),
        ((0.1, 0.1, 0.1), "cannot be told"),
    ],
)
def test_the_insight_is_judged_by_both_intervals(shares: tuple[float, ...], says: str) -> None:
    found = insight(*leaking(*shares))
    assert found.says == says and f" {says} here: " in found.sentence
    assert f"the base leaks on {shares[0]:.1%}" in found.sentence
    if shares[1] != shares[0]:
        assert f"SFT changes that by {100 * (shares[1] - shares[0]):+.1f} points" in found.sentence
    assert found.sentence.endswith("(3 seeds, 40 prompts).")
