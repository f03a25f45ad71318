"""TPE search: a search that was stopped proposes what it would have proposed without the stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from forty2.recipe.grid import read_grid
from forty2.runs.sweep.study import Study

METRIC = "metric: {name: pair_margin, goal: maximize}\n"
SEARCH = (
    f"method: tpe\nrun_cap: 13\n{METRIC}parameters:\n"
    "  phases.dpo.lr: {min: 1.0e-5, max: 1.0e-1, distribution: log_uniform_values}\n"
    "  phases.dpo.loss: [sigmoid, [1, 2], null]\n"
    "  phases.dpo.batch_size: {min: 2, max: 6}\n"
)


def search(file: Path, stops: Mapping[int, str] | None = None) -> list[Mapping[str, object]]:
    """Search for a rate of 1e-3; stop before some proposals are reported, or in the middle of one."""
    grid_file = file.with_suffix(".yaml")
    grid_file.write_text(SEARCH)
    grid = read_grid(grid_file, "demo")
    found: list[Mapping[str, object]] = []
    while (proposal := Study(file, grid, 7).propose()) is not None:
        stop = (stops or {}).get(proposal.number)
        if stop == "unreported":
            assert Study(file, grid, 7).proposals()[-1] == proposal
        if stop == "half":  # what a kill in the middle of the next proposal leaves
            study = Study(file, grid, 7)._study()
            study.ask().suggest_float("phases.dpo.lr", 1e-5, 1e-1, log=True)
        rate = float(str(proposal.settings["phases.dpo.lr"]))
        value = None if proposal.number == 3 else -abs(np.log(rate / 1e-3))
        Study(file, grid, 7).tell(proposal.number, value)
        Study(file, grid, 7).tell(proposal.number, 99.0)  # a second report changes nothing
        found.append(proposal.settings)
    return found


def test_a_search_that_was_stopped_proposes_what_it_would_have(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole.db")
    assert len(whole) == 13
    assert search(tmp_path / "stopped.db", {4: "unreported", 11: "half", 12: "half"}) == whole
    for settings in whole:
        assert settings["phases.dpo.loss"] in ("sigmoid", [1, 2], None)
        assert settings["phases.dpo.batch_size"] in (2, 3, 4, 5, 6)
    last = [abs(np.log(float(str(one["phases.dpo.lr"])) / 1e-3)) for one in whole]
    assert np.mean(last[10:]) < np.mean(last[:10])  # ten are drawn at random first
