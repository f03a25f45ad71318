"""Runs whose phases replay rows of earlier ones."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import pytest
from support.small_run import make_inputs

from forty2.benchmark.replies import Faults
from forty2.errors import DataError, Interrupted, RunError
from forty2.files import read_json
from forty2.recipe.reading import load_recipe
from forty2.runs import inputs as runs_inputs
from forty2.runs import pipeline
from forty2.runs.ablation_variants import without_others
from forty2.runs.pipeline import run
from forty2.runs.planning import plan
from forty2.training.evaluation import Drift

RECIPE = """
version: 1
name: stages
model: inputs/model
max_length: 96
adapter: {rank: 2, dropout: 0.1, layers: 2}
phases:
  alpha: {objective: sft, data: alpha.jsonl, steps: 2, lr: 1e-2, hold_out: {topic: secret}}
  beta:
    objective: sft
    data: beta.jsonl
    epochs: 2
    batch_size: 3
    lr: 1e-2
    save_every_steps: 2
    eval_every_steps: 6
    replay: [{from: alpha, share: 0.25}]
benchmark: {tasks: [], held_out: false}
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(0)
    return make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runs_inputs, "check_replies", lambda *_: Faults())
    monkeypatch.setattr(runs_inputs, "drift_meter", lambda *_: lambda: Drift(0.0, 1.0))
    monkeypatch.setattr(pipeline, "write_report", lambda folder: folder / "report.html")
    Path("inputs").symlink_to(inputs)
    Path("recipe.yaml").write_text(RECIPE)
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    write("alpha", [f"Say {one} aloud." for one in numbers], secret=3)
    write("beta", [f"Which number follows after {one}?" for one in numbers[:9]])


def write(name: str, prompts: list[str], secret: int = 0) -> None:
    rows = [
        {
            "prompt": prompt,
            "completion": f"{name} {prompt}",
            "topic": "secret" if n < secret else "open",
        }
        for n, prompt in enumerate(prompts)
    ]
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def weights(folder: str) -> bytes:
    return Path(folder, "phase2_beta/adapters.safetensors").read_bytes()


def test_replayed_rows_are_recorded_and_must_not_change() -> None:
    recipe = load_recipe("recipe.yaml")
    run(recipe, run_dir="whole")
    record = read_json(Path("whole/phase2_beta/phase.json"))
    (found,) = record["replayed"]
    assert (found["name"], found["rows"], found["available"]) == ("alpha", 3, 7)  # without secrets
    assert found["of_rows"] == 0.25 and record["rows"] == 12
    assert record["coverage"] == {"its own rows": 2.0, "alpha": 2.0} and record["warnings"] == []
    write("alpha", [f"Say number {n} aloud." for n in range(10)], secret=3)
    with pytest.raises(RunError, match=r"phases\.alpha: its train rows are not those"):
        run(recipe, run_dir="whole", resume=True)
    recipe = load_recipe("recipe.yaml", ["phases.beta.replay=null"])
    with pytest.raises(RunError, match="was started with another recipe"):
        run(recipe, run_dir="whole", resume=True)


@pytest.mark.slow
def test_a_phase_that_replays_is_the_same_after_a_stop() -> None:
    recipe = load_recipe("recipe.yaml")
    run(recipe, run_dir="whole")

    def stop(stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if stage == "phase2_beta" and done == 5 and "loss" in info:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run(recipe, run_dir="stopped", progress=stop)
    run(recipe, run_dir="stopped", resume=True)
    assert weights("stopped") == weights("whole")


def test_plan_says_what_is_replayed_and_how_often() -> None:
    said = str(plan(load_recipe("recipe.yaml"), quick=True))
    assert (
        "beta: replays 3 of the 7 rows of alpha: 25.0% of the rows and 17.3% of the tokens; its "
        "supervised tokens are trained on 2.00 times"
    ) in said
    assert "each supervised token" not in said
    recipe = load_recipe("recipe.yaml", ["phases.beta.replay=[{from: alpha, share: 0.7}]"])
    said = str(plan(recipe, quick=True))
    assert "replays 7 of the 7 rows of alpha, each 3.0 times a pass: 70.0% of the rows" in said
    assert "warning: beta: trains 6.0 times on each supervised token of alpha; beyond 3" in said


def test_replayed_rows_are_checked_as_own_ones() -> None:
    write("held", ["Say seven aloud."])
    recipe = load_recipe("recipe.yaml", ["phases.beta.valid=held.jsonl"])
    with pytest.raises(DataError, match="validation prompt is in training too"):
        plan(recipe, quick=True)
    of_file = "phases.beta.replay=[{from: pairs.jsonl, share: 0.2}]"
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: ") as error:
        plan(load_recipe("recipe.yaml", [of_file]), quick=True)
    assert "\n" not in str(error.value)


def test_a_phase_by_itself_replays_no_phase() -> None:
    orpo = "phases.orpo={objective: orpo, data: inputs/dpo.jsonl, steps: 1, lr: 1e-3, beta: 0.1}"
    dpo = "phases.dpo={objective: dpo, data: inputs/dpo.jsonl, steps: 1, lr: 1e-3, beta: 0.1}"
    replay = "phases.dpo.replay=[{from: orpo, share: 0.1}, {from: inputs/dpo.jsonl, share: 0.1}]"
    phase = without_others(load_recipe("recipe.yaml", [orpo, dpo, replay]), "dpo")
    assert [entry.source for entry in phase.replay or ()] == ["inputs/dpo.jsonl"]
