"""The cost of a step is measured for every objective over pairs, on the same rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from forty2.progress import silent
from forty2.speed.objectives import measure_objectives, phases_of_pairs
from forty2.speed.results import StepCost
from forty2.speed.tables import format_objectives
from forty2.training.losses import PREFERENCE_LOSSES
from forty2.training.objectives import OBJECTIVES
from forty2.training.objectives.pairs import PairPhase


def test_every_objective_over_pairs_is_among_them() -> None:
    phases = phases_of_pairs()
    kinds = {name for name, kind in OBJECTIVES.items() if issubclass(kind, PairPhase)}
    assert {phase.objective for phase in phases.values()} == kinds
    assert {*PREFERENCE_LOSSES} < {*phases} and next(iter(phases)) == "sigmoid"


def test_the_table_says_what_each_costs() -> None:
    costs = {"sigmoid": StepCost(0.5, 1.0, 0.7, True), "orpo": StepCost(0.45, 0.9, 0.6, False)}
    _, first, second = format_objectives(costs).splitlines()
    assert first.split() == ["sigmoid", "0.500", "1.00", "0.70", "one", "pass"]
    assert second.split() == ["orpo", "0.450", "0.90", "0.60", "none"]


@pytest.mark.slow
def test_all_are_measured(starter_path: Path, tmp_path: Path) -> None:
    costs = measure_objectives(starter_path, "float32", 4, 1, silent)
    assert costs["sigmoid"].ratio == 1 and costs["sigmoid + kl"].ratio > 1
    assert not costs["simpo"].reference_pass and costs["ipo"].reference_pass
    assert all(cost.seconds > 0 and cost.gb > 0 for cost in costs.values())
