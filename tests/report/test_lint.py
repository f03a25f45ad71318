"""A report shows what the lint warned of when the run began."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from forty2.files import write_json
from forty2.report.lint import lint_table
from forty2.report.records import read_run
from forty2.report.run import write_report

OLD = Path(__file__).parents[1] / "old_runs"
WARNING = {"check": "near", "level": "warning", "message": "almost <b>alike</b>", "count": 1200}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(OLD / "sealed", tmp_path / "run"))
    found = [{**WARNING, "origins": ["rows:1", "rows:2"]}, {**WARNING, "count": 1, "origins": []}]
    write_json(folder / "lint.json", {"sft": found, "dpo": []})
    return folder


def test_warnings_are_listed_by_phase_with_their_rows(run: Path) -> None:
    assert lint_table(read_run(run)).rows == [
        ("sft", "1,200", "almost <b>alike</b>", "rows:1, rows:2"),
        ("sft", "1", "almost <b>alike</b>", "–"),
    ]


def test_both_documents_show_the_warnings_as_text(run: Path) -> None:
    page = write_report(run).read_text("utf-8")
    markdown = (run / "report.md").read_text("utf-8")
    assert "Warnings of the lint" in markdown and "Warnings of the lint" in page
    assert "`almost <b>alike</b>`" in markdown and "almost &lt;b&gt;alike" in page


def test_without_warnings_there_is_no_section(run: Path) -> None:
    write_json(run / "lint.json", {"sft": []})
    assert "Warnings of the lint" not in write_report(run).read_text("utf-8")
