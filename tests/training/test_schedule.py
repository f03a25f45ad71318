"""The plan of a phase: its steps, its learning rate, when it evaluates and saves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from support.training import sft

from forty2.training.objectives.sft import SftPhase
from forty2.training.schedule import learning_rate, plan_phase


def test_the_learning_rate_rises_then_falls() -> None:
    phase = sft(steps=10, lr=1.0e-3, warmup_steps=4, schedule="linear")
    rates = [learning_rate(phase, step, 10) for step in range(1, 11)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4] == pytest.approx(1e-3)
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.2e-3
    assert learning_rate(sft(lr=1e-3), 6, 6) == 1e-3


def test_epochs_and_steps() -> None:
    lengths = [30] * 100

    def steps(phase: SftPhase) -> int:
        return plan_phase(phase, lengths, [1.0] * 100, seed=1).steps

    assert steps(sft(steps=7)) == 7
    assert steps(sft(steps=None, epochs=1.5, batch_size=4, accumulate=2)) == 19
    assert steps(sft(steps=None, epochs=1.5, batch_tokens=120, accumulate=2)) == 19


def test_a_plan_counts_what_the_loop_does() -> None:
    phase = sft(steps=7, batch_size=4, accumulate=3, eval_every_steps=2, save_every_steps=3)
    plan = plan_phase(phase, [30] * 10, [1.0] * 10, seed=1)
    assert [n for n in range(1, 8) if plan.evaluates_after(n)] == [2, 4, 6, 7]
    assert [n for n in range(1, 8) if plan.saves_after(n)] == [3, 6, 7]
    assert (plan.evaluations, plan.saves) == (5, 3)  # one evaluation comes before the first step
    batches = [batch for step in range(1, 8) for batch in plan.step_rows(step)]
    assert batches == [plan.order.batch(index) for index in range(21)]
    assert plan.rows_used == list(range(10))
    assert plan.passes == 7 and plan.exposures(plan.steps) == pytest.approx(21 * 4 / 10)


def test_a_short_phase_uses_the_rows_of_its_batches() -> None:
    plan = plan_phase(sft(steps=2, batch_size=4), [30] * 100, [1.0] * 100, seed=1)
    assert plan.rows_used == sorted(plan.order.batch(0) + plan.order.batch(1))
    assert plan.passes == 1
