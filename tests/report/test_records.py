"""Reading run folders: of this release, of earlier ones, and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from forty2.errors import RunError
from forty2.files import read_json, write_json
from forty2.report.records import read_run

OLD = Path(__file__).parents[1] / "old_runs"
STAGE = {"stage": "base", "mc1": 0.3, "mc2": 0.5}
CHANGE = {"difference": 0.1, "low": 0.05, "high": 0.15, "verdict": "gain"}
PHASE = {
    "objective": "sft",
    "rows": 6,
    "steps": 2,
    "exposures": 1.0,
    "kept_step": 2,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder of an earlier release, stopped in its second phase."""
    return Path(shutil.copytree(OLD / "sealed", tmp_path / "run"))


@pytest.mark.parametrize("name", ["sealed", "unsealed"])
def test_a_run_of_an_earlier_release_is_read(name: str) -> None:
    read = read_run(OLD / name)
    assert (read.name, read.provenance.model) == ("old", "model")
    assert [(phase.name, phase.adapter_step) for phase in read.phases] == [("sft", 4)]
    assert read.summary is None and read.fused is None and read.answers == []
    assert read.provenance.versions["forty2"] == "0.1.0"
    losses = [line for line in read.log if line.phase == "dpo" and "loss" in line.values]
    assert [line.step for line in losses] == [1, 2, 3, 4, 5]


def test_what_an_earlier_summary_does_not_have_is_absent(run: Path) -> None:
    comparison = {"stage": "phase1_sft", "metrics": {"mc1": CHANGE}}
    write_json(run / "summary.json", {"stages": [STAGE], "comparisons": [comparison]})
    summary = read_run(run).summary
    assert summary is not None and (summary.verdict, summary.n) == ("", None)
    (stage,) = summary.stages
    assert (stage.mc1, stage.kl, stage.mc1_stderr, stage.calibration) == (0.3, None, None, None)
    assert summary.comparisons[0].changes["mc1"].p is None
    assert summary.contamination is None


def test_only_the_metrics_of_the_verdict_are_read_from_a_comparison(run: Path) -> None:
    metrics = {"mc1": CHANGE, "no leak": CHANGE}
    comparison = {"stage": "phase1_sft", "metrics": metrics, "judged": ["mc1"]}
    write_json(run / "summary.json", {"stages": [STAGE], "comparisons": [comparison]})
    summary = read_run(run).summary
    assert summary is not None and list(summary.comparisons[0].changes) == ["mc1"]


def test_phases_and_their_metrics_are_in_the_order_of_the_run(run: Path) -> None:
    """The tenth phase comes after the second, and one that was trained anew logged last."""
    for number, name in ((2, "b"), (10, "j")):
        folder = run / f"phase{number}_{name}"
        folder.mkdir()
        write_json(folder / "phase.json", {"name": name, **PHASE})
    names = ["j", "sft", "b", "sft"]
    lines = [json.dumps({"phase": name, "step": n, "loss": 1.0}) for n, name in enumerate(names)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n" + '{"phase": "sft", "st')
    read = read_run(run)
    assert [phase.name for phase in read.phases] == ["sft", "b", "j"]
    assert [(line.phase, line.step) for line in read.log] == [
        ("sft", 1),
        ("sft", 3),
        ("b", 2),
        ("j", 0),
    ]


def with_key(file: str, key: str, value: Any) -> tuple[str, str, Any]:
    return file, key, value


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        with_key("run.json", "name", None),
        with_key("run.json", "versions", "none"),
        with_key("phase1_sft/phase.json", "steps", "many"),
        with_key("phase1_sft/phase.json", "rows", float("inf")),
        with_key("summary.json", "stages", [{"mc1": 0.5}]),
        with_key("summary.json", "stages", 7),
        with_key("fused.json", "path", "fused"),
    ],
)
def test_a_damaged_file_is_one_line_with_what_to_do(
    file: str, key: str, value: Any, run: Path
) -> None:
    record = read_json(run / file) if (run / file).exists() else {}
    record.pop(key, None)
    if value is not None:
        record[key] = value
    (run / file).write_text(json.dumps(record))
    with pytest.raises(
        RunError, match=r"run: damaged, or written by another release .*`resume=True`"
    ):
        read_run(run)


def test_a_stage_s_name_leads_to_no_other_folder(run: Path, tmp_path: Path) -> None:
    items = {"behaviour": {"items": [{"id": "a", "leak": True, "answer": "secret"}]}}
    write_json(tmp_path / "outside.json", items)
    stages = [STAGE, {**STAGE, "stage": "../../outside"}]
    write_json(run / "summary.json", {"stages": stages})
    (run / "benchmarks").mkdir()
    write_json(run / "benchmarks" / "base.json", items)
    with pytest.raises(RunError, match="damaged"):
        read_run(run)
