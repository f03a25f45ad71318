"""Red lines: found when they are crossed, silent when they are not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from forty2.training.evaluation import Drift
from forty2.training.red_lines import PATIENCE, WINDOW, RedLine, RedLineMonitor, judge_drift

RNG = np.random.default_rng(5)


def after(*losses: float) -> RedLineMonitor:
    """A monitor that has counted steps with these losses."""
    monitor = RedLineMonitor()
    for loss in losses:
        monitor.count_taken(loss, 1.0, uninformed_loss=math.inf)
    return monitor


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_figure_that_is_no_number_is_red(loss: float, norm: float) -> None:
    red = RedLineMonitor().judge_step(loss, norm, math.inf)
    assert red is not None and red.line == "not_finite"


def test_a_leap_is_red_once_there_is_something_to_compare_with() -> None:
    assert after(2.0).spike_limit() == math.inf
    smooth = after(*RNG.normal(2.0, 0.01, WINDOW))
    assert 2.9 < smooth.spike_limit() < 3.1 and 2.4 < smooth.spike_limit(0.5) < 2.6
    rough = after(*RNG.normal(2.0, 0.3, WINDOW)).spike_limit()
    assert 3.3 < rough < 4.5
    red = smooth.judge_step(rough + 0.1, 1.0, rough)
    assert red is not None and red.line == "spike" and "beyond" in red.reason
    assert smooth.judge_step(rough, 1.0, rough) is None


def test_the_losses_of_healthy_runs_are_silent() -> None:
    steps = np.arange(2000)
    for curve in (
        3.0 * np.exp(-steps / 300) + 1.0 + RNG.gamma(4.0, 0.1, 2000),  # falling, a long tail
        2.0 + RNG.normal(0, 0.5, 2000),  # slow: it learns nothing to speak of
        np.abs(RNG.normal(0, 0.02, 2000)),  # saturated preferences
        0.69 + RNG.normal(0, 1e-4, 2000),  # a tiny rate
    ):
        healthy = RedLineMonitor()
        for loss in curve:
            assert healthy.judge_step(loss, 0.1, healthy.spike_limit()) is None
            assert healthy.count_taken(loss, 0.1, uninformed_loss=10.0) is None


def test_nothing_learned_is_red_once() -> None:
    idle = RedLineMonitor()
    reds = [idle.count_taken(2.0, 0.0, uninformed_loss=10.0) for _ in range(3 * PATIENCE)]
    assert [n for n, red in enumerate(reds) if red is not None] == [PATIENCE - 1]
    satisfied = RedLineMonitor()  # every pair beyond a hinge: no gradient, and none needed
    assert not any(
        satisfied.count_taken(0.0, 0.0, uninformed_loss=10.0) for _ in range(3 * PATIENCE)
    )


def test_a_loss_as_of_a_guess_is_red_once() -> None:
    lost = RedLineMonitor()
    reds = [lost.count_taken(10.4, 1.0, uninformed_loss=10.0) for _ in range(2 * WINDOW)]
    assert [n for n, red in enumerate(reds) if red is not None] == [WINDOW - 1]


@pytest.mark.parametrize(
    "losses, red",
    [
        ([1.0, 1.1, 1.2], True),
        ([1.0, 0.9, 0.95, 1.0], True),
        ([1.0, 1.1, 1.05, 1.1], False),  # not in a row
        ([0.690, 0.691, 0.692], False),  # noise
        ([1.0, 0.9, 0.8], False),
    ],
)
def test_two_rises_of_the_validation_loss_are_red(losses: list[float], red: bool) -> None:
    judged = after(1.0)
    reds = [judged.judge_evaluation(loss) for loss in losses]
    assert bool(reds[-1]) is red
    assert not any(reds[:-1])


def test_a_validation_loss_far_above_the_training_loss_is_red() -> None:
    (red,) = after(*[0.2] * 30).judge_evaluation(1.3)
    assert red == RedLine(
        "validation",
        "validation loss is 1.3, training loss 0.2: the model memorizes its training rows",
    )
    assert not after(*[0.2] * 30).judge_evaluation(0.9)
    assert not after(*[0.001] * 30).judge_evaluation(0.2)  # five times nothing is nothing
    assert not RedLineMonitor().judge_evaluation(9.0)  # nothing trained yet


@pytest.mark.parametrize(
    ("kl", "perplexity", "crossed"),
    [
        *((0.0, 1.0, False), (0.5, 1.3, False), (0.2, 0.9, False)),
        # 200 steps of SFT at 8e-4 on the starter; DPO after SFT on a model of 0.5B
        *((1.3, 67.5 / 42.8, True), (2.3, 609 / 65, True), (0.51, 1.0, True), (0.1, 1.31, True)),
    ],
)
def test_a_model_that_moves_far_from_its_base_crosses_a_line(
    kl: float, perplexity: float, crossed: bool
) -> None:
    red = judge_drift(Drift(kl, perplexity))
    assert (red is not None) == crossed
    if red is not None:
        assert red.line == "drift" and f"{kl:.3g} nats a token" in red.reason
        assert ("has lost its basic language" in red.reason) == (perplexity > 2)
