"""Runs whose rows are ordered, divided and held out by their keys."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.small_run import make_inputs

from forty2.benchmark.replies import Faults
from forty2.cli import main
from forty2.errors import Interrupted
from forty2.files import read_json
from forty2.recipe.reading import load_recipe
from forty2.runs import inputs as runs_inputs
from forty2.runs import pipeline
from forty2.runs.planning import plan
from forty2.training import reference

DOMAINS = ("arts", "law", "science")
RECIPE = """
version: 1
name: curriculum
model: inputs/model
max_length: 96
adapter: {rank: 2, dropout: 0.1, layers: 2}
phases:
  dpo:
    objective: dpo
    data: data
    epochs: 3
    batch_size: 2
    lr: 1.0e-2
    beta: 0.1
    loss: sigmoid
    lint: false
    save_every_steps: 3
    best: {metric: loss, direction: min}
    curriculum: {by: BY, stages: [0.3, 0.6, 1.0], drop_hardest: 0.2}
    stratify: [domain, tone]
    hold_out: {domain: arts}
benchmark: {tasks: [], held_out: false}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mx.random.seed(0)
    make_inputs(tmp_path / "inputs")
    (tmp_path / "data").mkdir()
    rows = [
        {
            "prompt": f"Count to {n}, please.",
            "chosen": " ".join(map(str, range(n))) or "0",
            "rejected": "No" + "!" * n,
            "domain": DOMAINS[n % 3],
            "tone": "ab"[n % 2],
            "order": n / 24,
            "unread": 1,
        }
        for n in range(24)
    ]
    for name, part in (("train", rows[:18]), ("valid", rows[18:])):
        (tmp_path / "data" / f"{name}.jsonl").write_text(
            "".join(json.dumps(r) + "\n" for r in part)
        )
    for by in ("order", "reference_margin"):
        (tmp_path / f"{by}.yaml").write_text(RECIPE.replace("BY", by))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runs_inputs, "check_replies", lambda *_: Faults())
    monkeypatch.setattr(pipeline, "write_report", lambda folder: folder / "report.html")
    return tmp_path


def go(recipe: str, folder: str, *, stop: int | None = None, resume: bool = False) -> list[str]:
    """Run a recipe, interrupted after a step if `stop` says so; return what it said."""
    said: list[str] = []

    def progress(stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
        said.extend(str(info[key]) for key in ("notice", "warning") if key in info)
        if "loss" in info and done == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    pipeline.run(load_recipe(recipe), run_dir=folder, resume=resume, progress=progress)
    return said


@pytest.mark.parametrize(
    "recipe", [pytest.param("order.yaml", marks=pytest.mark.slow), "reference_margin.yaml"]
)
def test_a_run_that_stops_in_a_stage_goes_on_in_the_same_order(
    here: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    real = reference._token_logps

    def counting(model: Any, rows: Any, which: Any, *rest: Any) -> Any:
        scored.append(len(which))
        return real(model, rows, which, *rest)

    monkeypatch.setattr(reference, "_token_logps", counting)
    said = go(recipe, "whole")
    used = 10 if recipe == "order.yaml" else 12  # margins need the hardest rows, too
    assert sorted(scored) == [4, 8, used]  # validation, held out, training: each row once
    unread = "unread" if recipe == "order.yaml" else "order, unread"
    assert f"dpo: ignored: {unread} (18 rows)" in said
    with pytest.raises(Interrupted):
        go(recipe, "parts", stop=4)
    go(recipe, "parts", resume=True)
    adapters = [Path(run, "phase1_dpo", "adapters.safetensors") for run in ("whole", "parts")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    record = read_json(here / "whole" / "phase1_dpo" / "phase.json")
    assert (record["rows"], record["valid_rows"]) == (12, 4)
    assert {"loss", "accuracy", "hold_out_loss", "hold_out_accuracy"} <= record["valid"].keys()
    log = (here / "whole" / "metrics.jsonl").read_text().splitlines()
    assert sum("valid_hold_out_margin" in json.loads(line) for line in log) > 2


def test_the_plan_counts_stages_and_strata(here: Path) -> None:
    (phase,) = plan(load_recipe("order.yaml"), quick=True).phases
    found = phase.curriculum
    assert found is not None and phase.hold_out_rows == 8
    assert (found.left_out, [one.rows for one in found.stages]) == (2, [3, 6, 10])
    assert {cell: counts[0] for cell, counts in found.strata.items()} == {
        (domain, tone): 3 for domain in ("law", "science") for tone in "ab"
    }
    for stage in range(3):
        drawn = sum(counts[1 + stage] for counts in found.strata.values())
        assert drawn == found.stages[stage].drawn == found.stages[stage].rows
    assert "the hardest 2 are left out" in str(found)
    (unknown,) = plan(load_recipe("reference_margin.yaml"), quick=True).phases
    assert "known when the phase begins" in str(unknown.curriculum)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("epochs=2", "phases.dpo.curriculum.stages: the last of 3 stages begins after 2 passes"),
        ("stratify=[colour]", "data: no row has 'colour'"),
        ("hold_out={domain: music}", "data: no row to hold out with domain: music"),
        ("hold_out={domain: [arts, law, science]}", "data: hold_out leaves no row to train on"),
        ("curriculum.by=level", "train.jsonl:2: has no 'level'"),
        ("curriculum.by=tone", "train.jsonl:2: tone is 'b'"),
        ("curriculum.drop_hardest=0.99", "phases.dpo.curriculum.drop_hardest: 0.99 of 12 rows"),
        ("curriculum.stages=[0.5]", "curriculum.stages: the last share should be 1"),
        ("curriculum.stages=null", "stratify: a pass from easy to hard cannot be even"),
        ("curriculum.order=shuffled", "stages: they go from easy to hard"),
        ("stratify=[tone, tone]", "stratify: a key stands there twice"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_bad_curricula_are_refused_before_anything_runs(
    here: Path, command: str, change: str, said: str
) -> None:
    more = ["--quick"] if command == "plan" else ["--run-dir", "refused"]
    result = CliRunner().invoke(
        main, [command, "order.yaml", "--set", f"phases.dpo.{change}", *more]
    )
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert result.exit_code == 2 and said in line, result.output
    assert not list(here.glob("refused/metrics.jsonl"))


def test_only_pairs_have_margins(here: Path) -> None:
    text = RECIPE.replace("BY", "reference_margin").replace("objective: dpo", "objective: sft")
    text = text.replace("    beta: 0.1\n", "").replace("    loss: sigmoid\n", "")
    Path("sft.yaml").write_text(text)
    result = CliRunner().invoke(main, ["recipe", "check", "sft.yaml"])
    assert "only pairs have a reference_margin" in result.output
