"""A report shows gates, forgetting by bucket, and what was replayed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from forty2.files import read_json, write_json
from forty2.report.curriculum import buckets_table, coverage_table, gates_table
from forty2.report.records import read_run
from forty2.report.run import notices, write_report

OLD = Path(__file__).parents[1] / "old_runs"
BUCKET = {"name": "<b>say</b>", "n": 20, "best": "phase1_sft", "forgotten": 4}
SHARES = {"base": 0.0, "phase1_sft": 0.9, "phase2_dpo": 0.7}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(OLD / "sealed", tmp_path / "run"))
    gate = {"least": 0.95, "share": 0.9, "low": 0.699, "high": 0.972, "n": 20, "passed": False}
    write_json(folder / "gates.json", {"sft": {"say": gate}, "unfinished": {"say": gate}})
    file = next(folder.glob("phase1_sft/phase.json"))
    source = {"name": "alpha", "rows": 1200, "of_rows": 0.15, "of_tokens": 0.098}
    more = {"coverage": {"its own rows": 1.0, "alpha": 3.5}, "replayed": [source]}
    write_json(file, {**read_json(file), **more, "warnings": ["trains 3.5 times"]})
    write_json(folder / "summary.json", {"buckets": [{**BUCKET, "shares": SHARES}]})
    return folder


def test_each_table_has_what_was_recorded(run: Path) -> None:
    found = read_run(run)
    assert gates_table(found).rows == [
        ("sft", "say", "90.0%", "69.9% to 97.2%", "95.0%", "20", "failed")
    ]
    table = buckets_table(found)
    assert table.head == ("Bucket", "Prompts", *SHARES, "Forgotten")
    assert table.rows == [("<b>say</b>", "20", "0%", "90%", "70%", "4 since phase1_sft")]
    own, replayed = coverage_table(found).rows
    assert own[:2] == ("sft", "its own rows") and own[3:] == ("85.0%", "90.2%", "1.00")
    assert replayed == ("sft", "alpha", "1,200", "15.0%", "9.8%", "3.50")
    assert "sft: trains 3.5 times" in notices(run)


def test_both_documents_show_the_tables_as_text(run: Path) -> None:
    page = write_report(run).read_text("utf-8")
    markdown = (run / "report.md").read_text("utf-8")
    for title in ("Gates", "Eval prompts by bucket", "Use of the rows"):
        assert f"### {title}" in markdown and f"<h3>{title}</h3>" in page
    assert "&lt;b&gt;say" in page and "<b>say</b></td>" not in page


def test_a_run_without_stages_has_none_of_them(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLD / "sealed", tmp_path / "run"))
    found = read_run(folder)
    assert not (gates_table(found).rows or buckets_table(found).rows or coverage_table(found).rows)
    assert "Eval prompts by bucket" not in write_report(folder).read_text("utf-8")
