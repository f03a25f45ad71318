"""A report adds up the time of each stage over all starts of its run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from forty2.report.records import read_run
from forty2.report.run import write_report
from forty2.report.times import time_table

OLD = Path(__file__).parents[1] / "old_runs"
TIMES = [
    {"stage": "reading model and data", "kind": "read", "seconds": 4.0},
    {"stage": "training sft", "kind": "train", "phase": "sft", "seconds": 60.0},
    {"stage": "reading model and data", "kind": "read", "seconds": 5.0},
    {"stage": "training sft", "kind": "train", "phase": "sft", "seconds": 90.5},
    {"stage": "fusing", "kind": "fuse", "seconds": 3.0},
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was started twice."""
    folder = Path(shutil.copytree(OLD / "sealed", tmp_path / "run"))
    (folder / "times.jsonl").write_text("".join(json.dumps(line) + "\n" for line in TIMES))
    return folder


def test_a_stages_time_is_the_sum_of_its_entries_and_the_last_row_the_sum_of_all(run: Path) -> None:
    assert time_table(read_run(run)).rows == [
        ("reading model and data", "9 s", "–"),
        ("training sft", "3 min", "0.001 GB"),
        ("fusing", "3 s", "–"),
        ("in all", "3 min", "0.001 GB"),
    ]


def test_both_documents_show_the_times(run: Path) -> None:
    page = write_report(run)
    assert "| training sft | 3 min | 0.001 GB |" in (run / "report.md").read_text("utf-8")
    assert ">training sft</th>" in page.read_text("utf-8")


def test_an_entry_that_is_not_complete_yet_is_left_out(run: Path) -> None:
    before = read_run(run).times
    with open(run / "times.jsonl", "a") as file:
        file.write('{"stage": "fusing", "ki')
    assert read_run(run).times == before


def test_a_run_of_an_earlier_release_has_no_section_on_time(run: Path) -> None:
    (run / "times.jsonl").unlink()
    write_report(run)
    assert "## Time" not in (run / "report.md").read_text("utf-8")
