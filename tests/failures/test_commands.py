"""`forty2 failures cluster`, `label` and `report`, as a user meets them."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.failure_folder import planted, write_folder

from forty2.cli import main


def call(*args: str) -> Result:
    return CliRunner().invoke(main, ["failures", *args])


def test_clusters_labels_and_a_page_one_after_another(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "F", planted(30)))
    done = call("cluster", folder, "--k", "4")
    assert done.exit_code == 0, done.output
    first, worst, *_ = done.output.splitlines()
    assert first == "1 of 4 clusters fails more often than the rest."
    assert "30 items" in worst and "worse" in worst and "train" in worst
    done = call("label", folder)
    assert done.exit_code == 0 and "of 4 labels sort held-out items" in done.output
    done = call("report", folder)
    assert done.exit_code == 0 and done.output == f"report    {folder}/failures.html\n"
    assert "train" in (tmp_path / "F" / "failures.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("cluster", "F", "--k", "1"), "above 1, or auto"),
        (("cluster", "F", "--k", "many"), "above 1, or auto"),
        (("cluster", "F"), "give a smaller --k"),
        (("cluster", "F", "--k", "2", "--model", "nowhere"), "nowhere: no such model"),
        (("label", "F"), "make it with forty2 failures cluster"),
        (("report", "F"), "make it with forty2 failures cluster"),
        (("cluster", "none"), "testset.json: no such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "F", planted(2))
    done = call(*args)
    assert done.exit_code == 2 and message in done.output
    assert "Traceback" not in done.output
