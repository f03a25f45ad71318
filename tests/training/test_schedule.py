"""The plan of a phase: its steps, its learning rate, when it evaluates and saves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import ROWS, adapted, dpo, run, sft

from forty2.training.batched_loss import ConversationLoss
from forty2.training.batches import SftBatch, rows_of_epoch
from forty2.training.objectives.phase import Best, Goal, Phase, RedLines
from forty2.training.objectives.sft import SftPhase
from forty2.training.processes import Group
from forty2.training.schedule import PhasePlan, learning_rate, longer, plan_phase, shared_steps


def test_the_learning_rate_rises_then_falls() -> None:
    phase = sft(steps=10, lr=1.0e-3, warmup_steps=4, schedule="linear")
    rates = [learning_rate(phase, step, 10) for step in range(1, 11)]
    assert rates[:4] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])
    assert rates[4] == pytest.approx(1e-3)
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert 0 < rates[-1] < 0.2e-3
    assert learning_rate(sft(lr=1e-3), 6, 6) == 1e-3


@given(st.integers(0, 8), st.integers(1, 40), st.floats(1e-6, 0.5))
def test_a_decay_falls_from_the_full_rate_along_a_line_or_a_cosine(
    warmup: int, decay: int, lr: float
) -> None:
    steps = warmup + decay
    phases = {
        schedule: sft(steps=steps, lr=lr, warmup_steps=warmup, schedule=schedule)
        for schedule in ("linear", "cosine")
    }
    for done in range(decay):
        rates = {s: learning_rate(phase, warmup + done + 1, steps) for s, phase in phases.items()}
        assert rates["linear"] == pytest.approx(lr * (decay - done) / decay)
        assert rates["cosine"] == pytest.approx(lr * math.cos(math.pi / 2 * done / decay) ** 2)


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
    assert plan.passes == 7 and plan.exposures(plan.steps) == sum(map(len, batches)) / 10 == 7


def test_a_short_phase_uses_the_rows_of_its_batches() -> None:
    plan = plan_phase(sft(steps=2, batch_size=4), [30] * 100, [1.0] * 100, seed=1)
    assert plan.rows_used == sorted(plan.order.batch(0) + plan.order.batch(1))
    assert plan.passes == 1


def test_a_phase_evaluates_and_saves_about_five_times_where_the_recipe_does_not_say() -> None:
    for steps, due in (
        (3, [1, 2, 3]),
        (14, [2, 4, 6, 8, 10, 12, 14]),
        (32, [6, 12, 18, 24, 30, 32]),
    ):
        plan = plan_phase(sft(steps=steps), [30] * 10, [1.0] * 10, seed=1)
        assert [n for n in range(1, steps + 1) if plan.evaluates_after(n)] == due
        assert [n for n in range(1, steps + 1) if plan.saves_after(n)] == due


@given(st.integers(1, 9), st.integers(1, 3), st.booleans())
def test_a_longer_plan_takes_the_same_steps_then_as_many_more(
    length: int, accumulate: int, epochs: bool
) -> None:
    extent = {"steps": None, "epochs": length} if epochs else {"steps": length}
    phase = sft(batch_size=4, accumulate=accumulate, **extent)
    plan = plan_phase(phase, [30] * 10, [1.0] * 10, seed=1)
    twice = longer(plan)
    assert twice.steps == 2 * plan.steps and twice.batches == twice.steps * accumulate
    assert all(twice.step_rows(n) == plan.step_rows(n) for n in range(1, plan.steps))
    assert all(len(twice.step_rows(n)) == accumulate for n in range(1, twice.steps + 1))


DECIDES: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "nothing": ({}, False, False),
    "best": ({"best": Best(metric="loss", direction="min")}, True, False),
    "until": ({"until": Goal(metric="loss", at_most=1.0)}, True, False),
    "validation": ({"red_lines": RedLines(validation="stop")}, True, False),
    "replies": ({"red_lines": RedLines(replies="stop")}, True, False),
    "spike": ({"red_lines": RedLines(spike="back")}, False, True),
    "both": ({"red_lines": RedLines(validation="back")}, True, True),
}
"""Keys of a phase, and whether its evaluations and its checkpoints decide how it goes on."""


@pytest.mark.parametrize("keys", DECIDES)
@settings(max_examples=40)
@given(st.data())
def test_plans_share_the_steps_before_rows_or_what_decides_differ(
    keys: str, data: st.DataObject
) -> None:
    changes, evaluates, saves = DECIDES[keys]

    def plan() -> PhasePlan:
        length = data.draw(st.integers(1, 12))
        every = st.none() | st.integers(1, length)
        extent = data.draw(
            st.just({"steps": length}) | st.just({"steps": None, "epochs": length / 3 + 0.3})
        )
        due = {"eval_every_steps": data.draw(every), "save_every_steps": data.draw(every)}
        phase = sft(batch_size=4, **changes, **due, **extent)
        return plan_phase(phase, [30] * 10, [1.0] * 10, seed=1)

    one, other = plan(), plan()

    def alike(step: int) -> bool:
        return (
            one.step_rows(step) == other.step_rows(step)
            and not (evaluates and one.evaluates_after(step) != other.evaluates_after(step))
            and not (saves and one.saves_after(step) != other.saves_after(step))
        )

    both = range(1, min(one.steps, other.steps) + 1)
    assert shared_steps(one, other) == len([*takewhile(alike, both)])
    assert shared_steps(one, one) == one.steps


# --- epochs ---------------------------------------------------------------------------------------


@st.composite
def phases(draw: st.DrawFn) -> tuple[list[int], list[float], dict[str, Any]]:
    """Draw rows' lengths and weights, and what forms batches and steps of them."""
    lengths = draw(st.lists(st.integers(1, 200), min_size=1, max_size=80))
    weight = draw(st.sampled_from([st.just(1.0), st.just(3.0), st.floats(0.2, 4)]))
    weights = draw(st.lists(weight, min_size=len(lengths), max_size=len(lengths)))
    formed = st.fixed_dictionaries(
        {
            "batch_size": st.integers(1, 40),
            "batch_tokens": st.none() | st.integers(1, 600),
            "accumulate": st.integers(1, 7),
        }
    )
    return lengths, weights, draw(formed)


def drawn_by(plan: PhasePlan, processes: int = 1) -> Counter[int]:
    """Count how often each row comes in the steps, in the shards of all processes together."""
    groups = [Group(rank, processes) for rank in range(processes)]
    return Counter(
        row
        for step in range(1, plan.steps + 1)
        for rotation, batch in enumerate(plan.step_rows(step))
        for group in groups
        for row in group.shard(batch, rotation)
    )


@given(phases(), st.integers(1, 4), st.integers(1, 3), st.sampled_from([sft, dpo]))
def test_epochs_are_whole_passes(
    drawn: tuple[list[int], list[float], dict[str, Any]],
    epochs: int,
    processes: int,
    kind: Callable[..., Phase],
) -> None:
    """Each row comes `epochs` times, or weight times as often, and the plan counts just that."""
    lengths, weights, formed = drawn
    phase = kind(steps=None, epochs=epochs, **formed)
    plan = plan_phase(phase, lengths, weights, seed=3)
    counts = drawn_by(plan, processes)
    in_pass = rows_of_epoch(weights)
    assert counts.total() == epochs * in_pass
    for row, weight in enumerate(weights):
        if all(float(one).is_integer() for one in weights):
            assert counts[row] == epochs * weight
        assert abs(counts[row] - epochs * weight * in_pass / sum(weights)) < epochs + 1e-6
    assert plan.exposures(plan.steps) == counts.total() / len(lengths)
    assert plan.unseen() == sum(not counts[row] for row in range(len(lengths)))
    assert all(all(plan.step_rows(step)) for step in range(1, plan.steps + 1))


@given(phases(), st.integers(1, 60), st.data())
def test_exposures_are_counted_from_the_rows_drawn(
    drawn: tuple[list[int], list[float], dict[str, Any]], steps: int, data: st.DataObject
) -> None:
    lengths, weights, formed = drawn
    plan = plan_phase(sft(steps=steps, **formed), lengths, weights, seed=3)
    assert plan.steps == steps and plan.batches == steps * plan.phase.accumulate
    upto = data.draw(st.integers(0, steps))
    rows = [row for n in range(1, upto + 1) for batch in plan.step_rows(n) for row in batch]
    assert plan.exposures(upto) == len(rows) / len(lengths)
    assert plan.unseen() == len(lengths) - len(drawn_by(plan))


@given(phases(), st.floats(0.01, 3.5))
def test_a_part_of_an_epoch_is_that_share_of_its_rows(
    drawn: tuple[list[int], list[float], dict[str, Any]], epochs: float
) -> None:
    lengths, weights, formed = drawn
    plan = plan_phase(sft(steps=None, epochs=epochs, **formed), lengths, weights, seed=3)
    counts = drawn_by(plan)
    assert abs(counts.total() - epochs * rows_of_epoch(weights)) <= (0.5 if epochs >= 1 else 1)
    assert plan.exposures(plan.steps) == counts.total() / len(lengths)


@pytest.mark.parametrize(("rows", "size"), [(33, 32), (6, 4), (5, 8)])
def test_few_rows_over_a_full_batch_come_as_often_as_the_others(rows: int, size: int) -> None:
    lengths, weights = [20] * rows, [1.0] * rows
    phase = sft(steps=None, epochs=3, batch_size=size)
    assert set(drawn_by(plan_phase(phase, lengths, weights, seed=1)).values()) == {3}
    for accumulate in (1, 2):  # as a release before counted
        phase = sft(steps=None, epochs=3, batch_size=size, accumulate=accumulate)
        rounded = plan_phase(phase, lengths, weights, seed=1, whole_epochs=False)
        assert rounded.steps == max(1, round(3 * rows / size / accumulate))


def test_the_loop_takes_the_rows_of_the_plan(tmp_path: Path) -> None:
    """Seven rows, batches of three, two to a step, three epochs: nine batches in five steps."""
    drawn: list[int] = []

    class Noting(ConversationLoss):
        def batch(self, indices: Sequence[int]) -> SftBatch:
            drawn.extend(indices)
            return super().batch(indices)

    said: list[str] = []
    trained = run(
        adapted(),
        Noting(ROWS[:7]),
        sft(steps=None, epochs=3, batch_size=3, accumulate=2),
        tmp_path,
        progress=lambda stage, done, total, info: said.append(str(info.get("seen"))),
    )
    assert trained.steps == 5 and Counter(drawn) == dict.fromkeys(range(7), 3)
    assert said[-1] == "3.00x"
