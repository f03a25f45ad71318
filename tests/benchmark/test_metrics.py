"""Scores of one item: MC1, MC2, MC3 and pass@k by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from forty2.benchmark import metrics
from forty2.benchmark.metrics import pass_at


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


def test_pass_at_k_by_hand() -> None:
    assert (pass_at(1, 1, 0), pass_at(1, 1, 1)) == (0.0, 1.0)
    assert pass_at(1, 10, 3) == pytest.approx(0.3)
    assert pass_at(2, 4, 2) == pytest.approx(1 - 1 / 6)  # of six pairs one has both failures
    assert pass_at(3, 4, 2) == 1.0
    assert pass_at(100, 200, 1) == pytest.approx(0.5)


@pytest.mark.parametrize("passed", range(6))
def test_pass_at_k_is_the_mean_over_all_draws(passed: int) -> None:
    marks = [True] * passed + [False] * (5 - passed)
    for k in range(1, 6):
        draws = list(itertools.combinations(marks, k))
        assert pass_at(k, 5, passed) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("wrong", [(0, 1, 1), (2, 1, 1), (1, 1, 2), (1, 1, -1)])
def test_pass_at_k_of_nothing_is_an_error(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at(*wrong)
