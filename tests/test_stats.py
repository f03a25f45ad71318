"""Paired statistics: against hand-worked values, a formula, and simulated data."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

from forty2.benchmark import metrics, stats
from forty2.benchmark.stats import Interval, Verdict
from forty2.errors import BenchmarkError


def result(items: list[tuple[list[float], list[float]]], **fields: Any) -> dict[str, Any]:
    """A result of questions with these scores; of mc1 the first, of mc2 the first two are true."""
    rows = [
        {
            "question": f"Question {number}?",
            "category": "odd" if number % 2 else "even",
            "mc1": {"loglik": single, "labels": [1] + [0] * (len(single) - 1)},
            "mc2": {"loglik": multiple, "labels": [1, 1] + [0] * (len(multiple) - 2)},
        }
        for number, (single, multiple) in enumerate(items)
    ]
    values = [metrics.item_metrics(row) for row in rows]
    means = {name: float(np.mean([v[name] for v in values])) for name in metrics.METRICS}
    base = {"benchmark": "truthfulqa", "questions": "ours", "questions_sha256": "0", "model": "m"}
    return {**base, "adapter": None, **means, "items": rows, **fields}


def random_result(n: int, *, seed: int, lift: float = 0.0) -> dict[str, Any]:
    """Scores drawn at random; `lift` favours the true options."""
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(n):
        single, multiple = rng.normal(size=4), rng.normal(size=5)
        single[0] += lift
        multiple[:2] += lift
        items.append((single.tolist(), multiple.tolist()))
    return result(items)


def test_metrics_on_hand_worked_scores() -> None:
    """Options of probability 1/8, 1/4, 1/2, 1/8; labels decide, not places."""
    scores = [math.log(p) for p in (0.125, 0.25, 0.5, 0.125)]
    assert metrics.mc1(scores, [0, 0, 1, 0]) == 1.0
    assert metrics.mc1(scores, [1, 0, 0, 0]) == 0.0
    assert metrics.mc2(scores, [0, 1, 1, 0]) == pytest.approx(0.75)
    assert metrics.mc2([s - 2000 for s in scores], [0, 1, 1, 0]) == pytest.approx(0.75)
    assert metrics.mc3(scores, [0, 0, 1, 1]) == 0.5  # 1/2 beats 1/4, 1/8 does not
    assert metrics.mc3(scores, [1, 0, 1, 0]) == 0.5  # 1/8 does not beat 1/4


def test_a_tie_is_not_right() -> None:
    assert metrics.mc1([-3.0, -3.0, -3.0], [1, 0, 0]) == 0.0
    assert metrics.mc3([-3.0, -3.0, -3.0], [1, 1, 0]) == 0.0
    assert metrics.mc2([-3.0, -3.0, -3.0], [1, 0, 0]) == pytest.approx(1 / 3)


def test_standard_error_divides_by_n_minus_one() -> None:
    """1, 2, 3, 6: mean 3, squares 4+1+0+9 = 14, sd √(14/3), / √4."""
    assert stats.stderr([1.0, 2.0, 3.0, 6.0]) == pytest.approx(math.sqrt(14 / 3) / 2)
    with pytest.raises(BenchmarkError, match="no standard error"):
        stats.stderr([1.0])


def test_detectable_difference_by_hand() -> None:
    """z(0.975) + z(0.8) = 1.95996 + 0.84162; standard error 1/√4 of ±1 ... sd √(4/3)."""
    differences = [1.0, -1.0, 1.0, -1.0]
    assert stats.detectable(differences) == pytest.approx(2.80158 * math.sqrt(4 / 3) / 2, rel=1e-5)


def test_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(5)
    n, spread = 200, 0.4
    change = stats.detectable(rng.normal(0, spread, size=100_000)) * math.sqrt(100_000 / n)
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


def test_equal_results_have_an_interval_of_nothing() -> None:
    assert stats.bootstrap([0.0] * 30) == Interval(0.0, 0.0)


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
    assert stats.verdict(Interval(low, high), 0.01) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("gain", "gain", "tax"), "tax"),
        (("gain", "inconclusive", "gain"), "inconclusive"),
        (("no tax", "gain", "no tax"), "gain"),
        (("no tax", "no tax", "no tax"), "no tax"),
    ],
)
def test_the_weakest_metric_speaks(verdicts: tuple[Verdict, ...], expected: Verdict) -> None:
    assert stats.overall(verdicts) == expected


def test_a_real_change_is_found_and_its_reverse_is_its_mirror() -> None:
    before, after = random_result(300, seed=3), random_result(300, seed=3, lift=1.0)
    up, down = stats.compare(before, after), stats.compare(after, before)
    assert up.verdict == "gain"
    assert down.verdict == "tax"
    for name in metrics.METRICS:
        assert up.metrics[name].difference == pytest.approx(-down.metrics[name].difference)
        assert (up.metrics[name].better, up.metrics[name].worse) == (
            down.metrics[name].worse,
            down.metrics[name].better,
        )
    assert up.metrics["mc1"].p is not None
    assert up.metrics["mc2"].p is None
    assert set(up.categories) == {"odd", "even"}


def test_one_more_right_of_300_is_inconclusive() -> None:
    """The seed's "+1 on 300 questions": 58 and 59 in a hundred, most of them other questions."""
    right, wrong = ([0.0, -1.0], [0.0, 0.0, -1.0]), ([-1.0, 0.0], [0.0, 0.0, -1.0])
    before = result([right] * 174 + [wrong] * 126)
    after = result([right] * 134 + [wrong] * 40 + [right] * 43 + [wrong] * 83)
    change = stats.compare(before, after).metrics["mc1"]
    assert change.difference == pytest.approx(0.01)
    assert change.verdict == "inconclusive"
    assert change.detectable > 0.05


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(4)
    before = random_result(200, seed=4)
    after = copy.deepcopy(before)
    for item in after["items"]:
        for part in ("mc1", "mc2"):
            noise = rng.normal(0, 0.05, size=len(item[part]["loglik"]))
            item[part]["loglik"] = (np.array(item[part]["loglik"]) + noise).tolist()
    values = [metrics.item_metrics(item) for item in after["items"]]
    after |= {name: float(np.mean([v[name] for v in values])) for name in metrics.METRICS}
    paired = stats.compare(before, after).metrics["mc2"].stderr
    unpaired = math.sqrt(2) * stats.stderr([v["mc2"] for v in values])
    assert paired < unpaired / 5


def test_the_table_shows_what_the_comparison_holds() -> None:
    comparison = stats.compare(
        random_result(40, seed=6), random_result(40, seed=7), margin=0.02, resamples=500
    )
    text = stats.format_comparison(comparison)
    for name, change in comparison.metrics.items():
        line = next(line for line in text.splitlines() if line.startswith(name.upper()))
        assert f"{change.difference:+.4f}" in line
        assert line.endswith(change.verdict)
    assert f"Verdict: {comparison.verdict}" in text
    assert "0.02" in text
    assert comparison.record()["metrics"]["mc1"]["low"] == comparison.metrics["mc1"].low


def test_results_of_other_questions_are_refused() -> None:
    one = random_result(5, seed=0)
    with pytest.raises(BenchmarkError, match=r"questions_sha256 is '0'.*'1'"):
        stats.compare(one, {**one, "questions_sha256": "1"})
    with pytest.raises(BenchmarkError, match="chat_template"):
        stats.compare(one, {**one, "chat_template": True})
    with pytest.raises(BenchmarkError, match="5 questions before, 6 after"):
        stats.compare(one, random_result(6, seed=0))
    other = copy.deepcopy(one)
    other["items"][2]["question"] = "Another?"
    with pytest.raises(BenchmarkError, match=r"item 3 is 'Question 2\?'.*'Another\?'"):
        stats.compare(one, other)
    other = random_result(5, seed=0)
    other["items"][4]["mc1"] = {"loglik": [1.0, 0.0], "labels": [1, 0]}
    values = [metrics.item_metrics(item) for item in other["items"]]
    other["mc1"] = float(np.mean([v["mc1"] for v in values]))
    with pytest.raises(BenchmarkError, match=r"item 5 .* has other options"):
        stats.compare(one, other)


def test_damaged_results_are_refused() -> None:
    one = random_result(5, seed=0)
    with pytest.raises(BenchmarkError, match=r"before: mc2 is stored as 0\.99"):
        stats.compare({**one, "mc2": 0.99}, one)
    with pytest.raises(BenchmarkError, match="after: mc1 is stored as nan"):
        stats.compare(one, {**one, "mc1": float("nan")})
    for bad in (float("nan"), float("inf"), None):
        broken = copy.deepcopy(one)
        broken["items"][1]["mc2"]["loglik"][3] = bad
        with pytest.raises(BenchmarkError, match=r"item 2 \('Question 1\?'\).*not finite|damaged"):
            stats.compare(one, broken)
    with pytest.raises(BenchmarkError, match="no TruthfulQA result"):
        stats.compare({}, one)
    with pytest.raises(BenchmarkError, match="no TruthfulQA result"):
        stats.compare([], one)  # type: ignore[arg-type]
    with pytest.raises(BenchmarkError, match="damaged"):
        stats.compare({key: value for key, value in one.items() if key != "items"}, one)
    ragged = copy.deepcopy(one)
    ragged["items"][0]["mc1"]["labels"] = [1]
    with pytest.raises(BenchmarkError, match="damaged"):
        stats.compare(one, ragged)
    one_sided = copy.deepcopy(one)
    one_sided["items"][0]["mc1"]["labels"] = [1, 1, 1, 1]
    with pytest.raises(BenchmarkError, match="damaged"):
        stats.compare(one, one_sided)
    with pytest.raises(BenchmarkError, match="margin"):
        stats.compare(one, one, margin=0.0)


def test_labels_other_than_0_and_1_are_refused() -> None:
    one = random_result(5, seed=0)
    one["items"][0]["mc2"]["labels"] = [1, 2, 0, 0, 0]
    with pytest.raises(BenchmarkError, match="damaged"):
        stats.compare(one, one)
