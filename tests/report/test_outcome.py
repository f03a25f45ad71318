"""A run ends with a table of what each phase changed, the step it kept, its time and its size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from forty2.files import read_json, write_json
from forty2.report.outcome import outcome_table

OLD = Path(__file__).parents[1] / "old_runs"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose first phase is finished, and was worked on for 150 s."""
    folder = Path(shutil.copytree(OLD / "sealed", tmp_path / "run"))
    times = [
        {"stage": "reading model and data", "kind": "read", "seconds": 5.0},
        {"stage": "training sft", "kind": "train", "phase": "sft", "seconds": 60.0},
        {"stage": "training sft", "kind": "train", "phase": "sft", "seconds": 90.0},
        {"stage": "fusing", "kind": "fuse", "seconds": 7.0},
    ]
    (folder / "times.jsonl").write_text("".join(json.dumps(line) + "\n" for line in times))
    return folder


def cells(table: str) -> dict[str, list[str]]:
    """Rows by their first cell."""
    head, _, *rows = table.splitlines()
    starts = [head.index(name) for name in head.split("  ") if name]
    ends = [*starts[1:], None]
    split = [[row[a:b].strip() for a, b in zip(starts, ends, strict=True)] for row in (head, *rows)]
    return {row[0]: row[1:] for row in split}


def test_a_phase_has_before_and_after_its_kept_step_its_time_and_the_adapters_size(
    run: Path,
) -> None:
    found = cells(outcome_table(run))
    assert found["phase"] == ["validation loss", "kept step", "time", "size"]
    assert found["sft"][:3] == ["5.617 → 4.860", "4 of 4", "2 min"]
    assert found["sft"][3].endswith("KB")
    assert found["reading"][2] == "5 s" and found["in all"][2] == "3 min"
    phase = run / "phase1_sft" / "phase.json"
    write_json(phase, read_json(phase) | {"kept_step": 2})
    assert cells(outcome_table(run))["sft"][:2] == ["5.617 → 5.264", "2 of 4"]


def test_without_validation_rows_the_training_loss_stands_in(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(x for x in lines if "valid_loss" not in x))
    found = cells(outcome_table(run))
    assert found["phase"][0] == "training loss" and found["sft"][0] == "5.486 → 4.936"


def test_fused_models_are_rows_with_their_size(run: Path, tmp_path: Path) -> None:
    for name, count in (("gold", 2000), ("gold-4bit", 500)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"0" * count)
    found = cells(outcome_table(run, [tmp_path / "gold", tmp_path / "gold-4bit"]))
    assert found["fused"][2:] == ["7 s", "2 KB"]
    assert found["fused, 4bit"][2:] == ["", "500 B"]


def test_a_run_of_an_earlier_release_has_no_times(run: Path) -> None:
    (run / "times.jsonl").unlink()
    found = cells(outcome_table(run))
    assert "time" not in found["phase"] and [*found] == ["phase", "sft"]


def test_the_time_of_phases_that_were_taken_over_is_said_to_be_in_it(run: Path) -> None:
    write_json(run / "run.json", read_json(run / "run.json") | {"reused": {"phases": ["sft"]}})
    assert cells(outcome_table(run))["in all, with sft taken over"][2] == "3 min"
