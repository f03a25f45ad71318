"""Rows in the order of a curriculum, and batches that are even over strata."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import dpo, sft

from forty2.errors import RecipeError
from forty2.training.batches import spread_over_strata
from forty2.training.objectives.phase import Curriculum
from forty2.training.schedule import PhasePlan, longer, plan_phase, shared_steps

STAGES = [0.3, 0.6, 1.0]


def planned(
    difficulty: Sequence[float], *, strata: Any = None, seed: int = 1, **phase: Any
) -> PhasePlan:
    rows = len(difficulty)
    settings = dpo(**{"steps": None, "epochs": 3.0, "batch_size": 4, **phase})
    return plan_phase(
        settings, [30] * rows, [1.0] * rows, seed, difficulty=difficulty, strata=strata
    )


def passes(plan: PhasePlan) -> list[list[int]]:
    """The rows of each pass, in order."""
    order = plan.order
    ends = [order.first_batch(n) for n in range(5) if order.first_batch(n) <= plan.batches]
    return [
        [row for index in range(first, end) for row in order.batch(index)]
        for first, end in pairwise(ends)
    ]


@given(st.integers(10, 60), st.integers(1, 9), st.integers(0, 5))
def test_each_pass_uses_every_row_of_its_stage_once(rows: int, size: int, seed: int) -> None:
    difficulty = np.random.default_rng(seed).permutation(rows).tolist()
    plan = planned(
        difficulty,
        seed=seed,
        epochs=4.0,
        batch_size=size,
        curriculum=Curriculum(by="order", stages=STAGES),
    )
    for share, used in zip([*STAGES, 1.0], passes(plan), strict=True):
        easiest = sorted(range(rows), key=lambda row: difficulty[row])[: round(share * rows)]
        assert sorted(used) == sorted(easiest)


@given(st.integers(10, 40), st.integers(1, 5), st.booleans())
def test_a_step_does_not_depend_on_the_steps_before_or_on_the_length(
    rows: int, accumulate: int, stratified: bool
) -> None:
    phase: dict[str, Any] = {"curriculum": Curriculum(by="order", stages=STAGES)}
    strata = [(str(row % 3),) for row in range(rows)] if stratified else None
    if stratified:
        phase["stratify"] = ["kind"]
    one, other = (
        planned(list(range(rows)), strata=strata, accumulate=accumulate, **phase) for _ in "12"
    )
    every = range(1, one.steps + 1)
    assert [one.step_rows(n) for n in every] == [other.step_rows(n) for n in reversed(every)][::-1]
    assert shared_steps(one, longer(one)) >= one.steps - 1


@given(st.integers(8, 50), st.floats(0.1, 0.9))
def test_the_hardest_rows_are_never_used(rows: int, share: float) -> None:
    difficulty = [float(row % 7) for row in range(rows)]
    plan = planned(
        difficulty, curriculum=Curriculum(by="order", order="shuffled", drop_hardest=share)
    )
    used = set(chain(*passes(plan)))
    left_out = set(range(rows)) - used
    assert len(left_out) == round(share * rows)
    assert max(difficulty[row] for row in used) <= min(difficulty[row] for row in left_out)
    assert plan.unseen() == 0
    assert plan.rows_used == sorted(used)


def test_a_pass_goes_from_easy_to_hard() -> None:
    difficulty = [3.0, 1.0, 2.0, 1.0, 2.0, 9.0, 0.5]
    plan = planned(difficulty, batch_size=2, curriculum=Curriculum(by="order"))
    for used in passes(plan):
        assert [difficulty[row] for row in used] == sorted(difficulty)


def test_equally_hard_rows_are_not_taken_in_the_order_of_the_file() -> None:
    plan = planned([1.0] * 200, curriculum=Curriculum(by="order", stages=[0.5, 1.0]))
    assert 60 < sum(row < 100 for row in passes(plan)[0]) * 2 < 140


def test_rows_of_a_stage_count_by_their_weight() -> None:
    curriculum = Curriculum(by="order", stages=[0.5, 1.0])
    phase = dpo(steps=None, epochs=2.0, batch_size=3, curriculum=curriculum)
    weights = [2.0, 1.0, 1.0, 3.0]
    plan = plan_phase(phase, [30] * 4, weights, 1, difficulty=[0, 1, 2, 3])
    assert [Counter(used) for used in passes(plan)] == [{0: 2, 1: 1}, {0: 2, 1: 1, 2: 1, 3: 3}]


@settings(max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 12), st.integers(0, 9))
def test_batches_are_even_over_a_key(sizes: list[int], size: int, seed: int) -> None:
    values = np.repeat(np.arange(len(sizes)), sizes)
    random = np.random.default_rng(seed)
    values = values[random.permutation(len(values))]
    order = spread_over_strata(values[:, None], size, random)
    assert sorted(order) == list(range(len(values)))
    left = Counter(values.tolist())
    for start in range(0, len(order), size):
        batch = Counter(values[order[start : start + size]].tolist())
        for value, count in left.items():
            due = count * batch.total() / left.total()
            assert math.floor(due) <= batch[value] <= math.ceil(due), (value, due, batch)
        left -= batch


def test_batches_are_even_over_several_keys_at_once() -> None:
    cells = [*product("abcd", "xyz", "123")]
    strata = cells * 4
    plan = planned(
        [0.0] * len(strata),
        strata=strata,
        epochs=1.0,
        stratify=["domain", "complexity", "subtlety"],
    )
    for index in range(plan.batches):
        batch = [strata[row] for row in plan.order.batch(index)]
        for values in zip(*batch, strict=True):
            counts = Counter(values)
            assert max(counts.values()) <= 2
        assert len(set(batch)) == 4
    first = [{cell[0] for cell in map(strata.__getitem__, plan.order.batch(n))} for n in range(12)]
    assert [len(domains) for domains in first] == [4] * 12


def test_sft_batches_by_tokens_are_stratified_too() -> None:
    strata = [(str(row % 2),) for row in range(64)]
    phase = sft(steps=None, epochs=1.0, batch_tokens=240, stratify=["kind"])
    plan = plan_phase(phase, [30] * 64, [1.0] * 64, 1, strata=strata)
    batches = [[row % 2 for row in plan.order.batch(n)] for n in range(plan.batches)]
    assert {sum(batch) / len(batch) for batch in batches} == {0.5}


def test_uses_are_counted_by_stage() -> None:
    plan = planned(list(range(10)), accumulate=2, curriculum=Curriculum(by="order", stages=STAGES))
    stages = plan.stages()
    assert [one.rows for one in stages] == [3, 6, 10]
    assert [one.uses.sum() for one in stages] == [3, 6, 10]
    assert [(one.first_step, one.last_step) for one in stages] == [(1, 1), (1, 2), (2, 3)]
    assert plan.exposures(plan.steps) == 1.9


def test_rows_that_the_last_batch_leaves_out_are_not_counted() -> None:
    plan = planned([0.0] * 10, epochs=1.5)
    (stage,) = plan.stages()
    assert stage.rows == 10 and stage.uses.sum() == 15
    assert stage.uses.sum() == sum(
        len(rows) for n in range(plan.steps) for rows in plan.step_rows(n + 1)
    )


def test_a_stage_may_be_of_one_row() -> None:
    plan = planned(list(range(10)), curriculum=Curriculum(by="order", stages=[0.1, 0.15, 1.0]))
    assert [stage.rows for stage in plan.stages()] == [1, 2, 10]


def test_a_plan_has_its_length_before_the_difficulty_is_known() -> None:
    phase = dpo(steps=None, epochs=3.0, curriculum=Curriculum(by="order", stages=STAGES))
    known, unknown = (
        plan_phase(phase, [30] * 10, [1.0] * 10, 1, difficulty=difficulty)
        for difficulty in (range(10), None)
    )
    assert unknown.steps == known.steps
    assert [one[:3] for one in unknown.stages()] == [one[:3] for one in known.stages()]


@pytest.mark.parametrize(
    ("curriculum", "more", "said"),
    [
        (
            {"stages": STAGES},
            {"epochs": 2.0},
            "the last of 3 stages begins after 2 passes, with step",
        ),
        ({"stages": STAGES}, {"steps": 2, "epochs": None}, "the phase ends before"),
        ({"stages": [0.1, 0.11, 1.0]}, {}, "0.11 of 10 rows adds none to 0.1"),
        ({"drop_hardest": 0.99}, {}, "0.99 of 10 rows leaves none"),
        ({"drop_hardest": 0.01}, {}, "0.01 of 10 rows is none"),
    ],
)
def test_a_curriculum_that_cannot_be_followed_is_refused(
    curriculum: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        planned(list(range(10)), curriculum=Curriculum(by="order", **curriculum), **more)
