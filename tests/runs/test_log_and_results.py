"""Log and results of a run in the layout of another package."""

from __future__ import annotations

from pathlib import Path

from forty2.files import read_json, write_json
from forty2.progress import silent
from forty2.runs.log_and_results import LoggedProgress, write_results


def test_messages_and_steps_are_appended(tmp_path: Path) -> None:
    log = tmp_path / "experiments" / "run.log"
    for _ in "two starts":
        progress = LoggedProgress(silent, log)
        progress("phase1_dpo", 1, 5, {"loss": "0.6931", "seen": "0.3x"})
        progress("phase1_dpo: reference", 3, 9, {})
        progress("run", 0, 1, {"warning": "too few rows"})
    lines = [line.split(" ", 2)[2] for line in log.read_text().splitlines()]
    expected = ["phase1_dpo: step 1 of 5: loss 0.6931, seen 0.3x", "run: warning: too few rows"]
    assert lines == expected * len("two starts")


def test_results_hold_phases_measurements_and_verdict(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for name, record in {
        "run.json": {"model": "m"},
        "summary.json": {"verdict": "gain"},
        "phase1_dpo/phase.json": {"name": "dpo"},
        "benchmarks/base.json": {"n": 3},
    }.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(run / name, record)
    write_results(run, tmp_path / "results" / "run.json")
    found = read_json(tmp_path / "results" / "run.json")
    assert found["phases"] == [{"name": "dpo"}] and found["summary"] == {"verdict": "gain"}
    assert found["started_with"] == {"model": "m"} and found["stages"] == {"base": {"n": 3}}
