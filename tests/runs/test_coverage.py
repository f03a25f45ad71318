"""Coverage counts the passes over supervised tokens, of own and of replayed rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.training import sft

from forty2.runs.coverage import MOST_ELSEWHERE, MOST_PASSES, OWN, coverage_of, coverage_warnings
from forty2.runs.phase_data import PhaseData
from forty2.text.prepared import Prepared
from forty2.text.replaying import Replayed
from forty2.text.rows import FittedRows, PairRow, RatedRow, Row, supervised_tokens
from forty2.training.objectives.phase import Curriculum, Phase
from forty2.training.schedule import plan_phase

ROWS = [Row([1] * 6, [False] * (5 - n) + [True] * (n + 1), f"x:{n}") for n in range(4)]


def coverage(
    phase: Phase, rows: list[Row], *replayed: Replayed, steps: int | None = None
) -> dict[str, float]:
    weights = [row.weight for row in rows]
    plan = plan_phase(phase, [6] * len(rows), weights, 1, difficulty=list(range(len(rows))))
    data = PhaseData(FittedRows(rows, [], []), None, "x", [], replayed=replayed)
    return coverage_of(plan, data, steps)


def test_a_row_counts_with_its_supervised_tokens() -> None:
    """Of 1 + 2 + 3 + 4 tokens; three steps of one row each use 3 rows of them."""
    phase = sft(steps=3, batch_size=1)
    plan = plan_phase(phase, [6] * 4, [1.0] * 4, 1)
    used = [row for step in (1, 2, 3) for (row,) in plan.step_rows(step)]
    assert coverage(phase, ROWS)[OWN] == pytest.approx(sum(row + 1 for row in used) / 10)
    assert coverage(sft(steps=None, epochs=2, batch_size=2), ROWS) == {OWN: 2.0}
    assert coverage(sft(steps=8, batch_size=2), ROWS, steps=4) == {OWN: 2.0}


def test_own_and_replayed_rows_are_counted_apart() -> None:
    weighted = [*ROWS[:3], ROWS[3]._replace(weight=3.0)]
    replayed = Replayed("alpha", 1, 5, 3.0, 0.5, 0.5, 0.5)
    found = coverage(sft(steps=None, epochs=2, batch_size=2), weighted, replayed)
    assert found == {OWN: 2.0, "alpha": 6.0}


def test_a_stage_is_warned_above_three_passes_and_any_other_phase_above_ten() -> None:
    stage = sft(eval_prompts="x.json", gate={"all": 0.5})
    assert coverage_warnings(stage, {OWN: MOST_PASSES, "alpha": 6.0}) == [
        "trains 6.0 times on each supervised token of alpha; beyond 3 times, expect them to be memorized"
    ]
    assert coverage_warnings(sft(), {OWN: MOST_ELSEWHERE}) == []
    (warning,) = coverage_warnings(sft(), {OWN: 20.0})
    assert "trains 20.0 times on each supervised token of its own rows; beyond 10 times" in warning


def test_rows_that_a_curriculum_leaves_out_do_not_count() -> None:
    hardest = Curriculum(by="order", order="shuffled", drop_hardest=0.25)
    assert coverage(sft(steps=None, epochs=1, curriculum=hardest), ROWS) == {OWN: 1.0}


def test_responses_that_are_learned_count() -> None:
    assert supervised_tokens(PairRow([1], [2, 3], [4], "x", masks=([False, True], [True]))) == 2
    assert supervised_tokens(RatedRow([1], [2, 3], [4, 5, 6], True, "x")) == 2


def test_prepared_rows_are_counted_as_others(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    np.ones(9, np.uint32).tofile(folder / "tokens.bin")
    np.array([0, 1, 1, 0, 0, 1, 0, 1, 1], np.uint8).tofile(folder / "mask.bin")
    np.array([[0, 3], [3, 3], [6, 3]], np.uint64).tofile(folder / "rows.idx")
    np.array([[0, 2], [2, 1]], np.uint64).tofile(folder / "packs.idx")
    rows = Prepared(folder)
    assert rows.supervised == [supervised_tokens(row) for row in rows] == [3, 2]
