"""Gates at a phase's end: what they stop, repeat and let through, and that a run goes on after them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.small_run import make_inputs

from forty2.benchmark.replies import Faults
from forty2.cli import main
from forty2.errors import Interrupted, RecipeError, TrainingError
from forty2.files import read_json
from forty2.recipe.reading import load_recipe
from forty2.runs import inputs as runs_inputs
from forty2.runs import pipeline
from forty2.runs.folder import read_metrics
from forty2.runs.gates import GATES, REPEATS, GateResult, failed_buckets, gate_results
from forty2.runs.pipeline import run
from forty2.runs.planning import plan
from forty2.training.evaluation import Drift
from forty2.training.objectives.phase import Phase

UNMEASURED = ("benchmark={tasks: [], held_out: false}", "fuse=null")
REACHED, MISSED = "^.", "no reply holds this"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(0)
    folder = make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")
    asked = {f"{bucket}_{n}": f"Say {n}." for bucket in ("reply", "miracle") for n in range(2)}
    expected = {key: REACHED if key.startswith("reply") else MISSED for key in asked}
    prompts = {"prompts": asked, "expected_outputs": expected, "match": "regex"}
    (folder / "gated.json").write_text(json.dumps(prompts))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runs_inputs, "check_replies", lambda *_: Faults())
    monkeypatch.setattr(pipeline, "write_report", brief_report)
    monkeypatch.setattr(runs_inputs, "drift_meter", lambda *_: lambda: Drift(0.0, 1.0))


def brief_report(folder: Path) -> Path:
    """Write an empty report: its charts take most of the time of such a run."""
    (folder / "report.html").touch()
    return folder / "report.html"


def recipe_of(inputs: Path, *overrides: str, second: bool = True) -> tuple[str, list[str]]:
    """Two phases of four steps, the first with a gate that fails."""
    phase = {
        "objective": "sft",
        "data": str(inputs / "sft.jsonl"),
        "steps": 4,
        "lr": 1e-2,
        "batch_size": 3,
        "save_every_steps": 3,
        "eval_every_steps": 4,
        "lint": False,
    }
    gated = {**phase, "eval_prompts": str(inputs / "gated.json"), "gate": {"miracle": 0.5}}
    phases = {"alpha": gated, **({"beta": phase} if second else {})}
    return str(inputs / "recipe.yaml"), [
        *UNMEASURED,
        "adapter.dropout=0.1",
        f"phases={json.dumps(phases)}",
        *overrides,
    ]


def go(inputs: Path, folder: str, *overrides: str, resume: bool = False) -> list[str]:
    """Run the recipe into a folder, and return its warnings."""
    said: list[str] = []

    def listen(stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        said.extend(str(info[key]) for key in ("warning", "notice") if key in info)

    source, values = recipe_of(inputs, *overrides)
    run(load_recipe(source, values), run_dir=folder, resume=resume, progress=listen)
    return said


def weights(folder: str, phase: str) -> bytes:
    (file,) = Path(folder).glob(f"phase*_{phase}/adapters.safetensors")
    return file.read_bytes()


def test_a_failed_gate_ends_the_run_and_keeps_everything(inputs: Path) -> None:
    with pytest.raises(TrainingError) as error:
        go(inputs, "r")
    message = str(error.value)
    assert message.startswith("alpha: gate failed: miracle: 0 of 2 eval prompts passed (0.0%, 95% ")
    assert "at least 50.0% should" in message and "\n" not in message
    assert read_json(Path("r/phase1_alpha/phase.json"))["steps"] == 4
    assert not Path("r/phase2_beta").exists() and Path("r/report.html").exists()
    found = read_json(Path("r") / GATES)["alpha"]["miracle"]
    assert (found["passed"], found["share"], found["n"], found["least"]) == (False, 0.0, 2, 0.5)


def test_a_run_goes_on_when_its_gate_was_changed_and_not_before(inputs: Path) -> None:
    go(inputs, "free", "phases.alpha.gate=null")
    with pytest.raises(TrainingError):
        go(inputs, "r")
    kept = weights("r", "alpha")
    with pytest.raises(TrainingError, match="miracle: 0 of 2"):
        go(inputs, "r", resume=True)
    with pytest.raises(TrainingError, match="all: 2 of 4"):
        go(inputs, "r", "phases.alpha.gate={reply: 1.0, all: 0.75}", resume=True)
    said = go(inputs, "r", "phases.alpha.gate={reply: 1.0, all: 0.5}", resume=True)
    assert "phases.alpha is judged by its gate as it is now" in "".join(said)
    assert weights("r", "alpha") == kept == weights("free", "alpha")
    assert weights("r", "beta") == weights("free", "beta")
    assert list(read_json(Path("r") / GATES)["alpha"]) == ["reply", "all"]


@pytest.mark.slow
def test_a_gate_that_may_fail_is_one_warning(inputs: Path) -> None:
    said = go(inputs, "r", "phases.alpha.on_fail=continue")
    assert sum("gate failed: miracle: 0 of 2" in one for one in said) == 1
    assert Path("r/phase2_beta/phase.json").exists()


@pytest.mark.slow
def test_a_phase_is_repeated_from_where_it_ended_and_then_the_run_ends(inputs: Path) -> None:
    """As a phase of so many steps would have trained from the start."""
    repeat = "phases.alpha.on_fail=repeat"
    with pytest.raises(TrainingError, match="miracle: 0 of 2"):
        go(inputs, "r", repeat)
    steps = 4 * (1 + REPEATS)
    assert read_json(Path("r/phase1_alpha/phase.json"))["steps"] == steps
    with pytest.raises(TrainingError):
        go(inputs, "long", f"phases.alpha.steps={steps}")
    assert weights("r", "alpha") == weights("long", "alpha")


@pytest.mark.slow
def test_a_repeated_phase_that_is_stopped_goes_on_with_the_same_bytes(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeat = "phases.alpha.on_fail=repeat"
    with pytest.raises(TrainingError):
        go(inputs, "whole", repeat)
    source, values = recipe_of(inputs, repeat)

    def stop(stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if stage == "phase1_alpha" and done == 6 and "loss" in info:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run(load_recipe(source, values), run_dir="r", progress=stop)
    shutil.rmtree("r/work/phase1_alpha/step6")  # as if it had been killed then
    with pytest.raises(TrainingError):
        go(inputs, "r", repeat, resume=True)
    assert weights("r", "alpha") == weights("whole", "alpha")
    for folder in ("r", "whole"):
        log = read_metrics(Path(folder, "metrics.jsonl"))
        found = [line["step"] for line in log if line.get("red_line") == "gate"]
        assert found == [4, 8, 12, 16]


def test_a_gate_that_is_reached_is_silent_and_repeats_nothing(inputs: Path) -> None:
    said = go(inputs, "r", "phases.alpha.gate={reply: 1.0}", "phases.alpha.on_fail=repeat")
    assert not any("gate" in one for one in said)
    assert read_json(Path("r/phase1_alpha/phase.json"))["steps"] == 4


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["phases.alpha.gate={echo: 0.8}"],
            r"phases\.alpha\.gate: echo: .*gated\.json has no prompt",
        ),
        (["phases.beta.gate={all: 0.8}"], r"phases\.beta\.gate: is over eval_prompts"),
        (["phases.beta.on_fail=continue"], r"on_fail: continue: there is no gate"),
        (
            ["phases.alpha.on_fail=repeat", "phases.alpha.schedule=cosine"],
            r"on_fail: repeat goes on .*set schedule: constant",
        ),
        (
            ["phases.alpha.on_fail=repeat", "phases.alpha.until={metric: passed, at_least: 0.5}"],
            r"on_fail: repeat goes on after the last step",
        ),
        (["phases.alpha.gate={all: 1.5}"], r"phases\.alpha\.gate\.all: should be less than or"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_one_line_before_anything_runs(
    inputs: Path, overrides: list[str], message: str
) -> None:
    source, values = recipe_of(inputs, *overrides)
    for begin in (
        lambda: run(load_recipe(source, values), run_dir="r"),
        lambda: plan(load_recipe(source, values), quick=True),
    ):
        with pytest.raises(RecipeError, match=message) as error:
            begin()
        assert "\n" not in str(error.value)
    assert not Path("r/phase1_alpha").exists() and not Path("r/work").exists()


def test_a_share_that_equals_its_gate_reaches_it(inputs: Path) -> None:
    source, values = recipe_of(inputs, "phases.alpha.gate={miracle: 0.95, all: 0.5}")
    phase: Phase = load_recipe(source, values).phases["alpha"]
    assert failed_buckets(phase, {"passed": 0.5, "passed_miracle": 19 / 20}) == []
    assert failed_buckets(phase, {"passed": 0.25, "passed_miracle": 0.5}) == ["miracle", "all"]
    assert list(gate_results(phase, {"passed": 0.5, "passed_miracle": 0.5})) == [
        GateResult("miracle", 0.95, 1, 2),
        GateResult("all", 0.5, 2, 4),
    ]


@pytest.mark.slow
def test_a_run_until_a_phase_is_finished_and_measured_and_the_rest_comes_later(
    inputs: Path,
) -> None:
    source, values = recipe_of(inputs, "phases.alpha.gate=null", "benchmark={tasks: []}")
    sets = [part for value in values for part in ("--set", value)]
    command = ["run", source, *sets, "--run-dir", "r"]
    stopped = CliRunner().invoke(main, [*command, "--until-phase", "alpha"])
    assert stopped.exit_code == 0, stopped.output
    assert Path("r/benchmarks/phase1_alpha.json").exists() and Path("r/report.html").exists()
    assert not Path("r/phase2_beta").exists()
    rest = CliRunner().invoke(main, [*command, "--resume"])
    assert rest.exit_code == 0, rest.output
    assert Path("r/benchmarks/phase2_beta.json").exists()
    whole = CliRunner().invoke(main, [*command[:-1], "whole"])
    assert whole.exit_code == 0 and weights("r", "beta") == weights("whole", "beta")
    unknown = CliRunner().invoke(main, [*command, "--resume", "--until-phase", "omega"])
    assert unknown.exit_code == 2 and "the recipe has alpha, beta" in unknown.output
