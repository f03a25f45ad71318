"""The folders of a run's phases are found again, in the order of the recipe."""

from __future__ import annotations

from pathlib import Path

from forty2.run_paths import finished_phases, phase_label


def test_phases_are_found_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    names = [f"name_{n}.x" for n in range(12)]
    for number, name in enumerate(names, 1):
        folder = tmp_path / phase_label(number, name)
        folder.mkdir()
        (folder / "phase.json").touch()
    (tmp_path / "phases_of_mine").mkdir()
    (tmp_path / "phases_of_mine" / "phase.json").touch()
    (tmp_path / phase_label(13, "unfinished")).mkdir()
    assert [*finished_phases(tmp_path).values()] == names
