"""Runs that go on to more steps end as if they had been so long from the start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.small_run import make_inputs

from forty2.cli import main
from forty2.errors import Interrupted, RunError
from forty2.files import read_json, write_json
from forty2.recipe.reading import load_recipe
from forty2.runs import extending
from forty2.runs.extending import BEGUN_WITH, JOURNAL, complete_extension
from forty2.runs.pipeline import run, train_phase

VARYING = ("tokens_per_s", "peak_memory_gb")
NO_EVALUATIONS = "eval_every_steps=null", "save_every_steps=null"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(0)
    return make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    shutil.copy(inputs / "recipe.yaml", tmp_path)
    shutil.copy(inputs / "measured.yaml", tmp_path)


def go(name: str, *overrides: str, resume: bool = False, recipe: str = "recipe.yaml") -> list[str]:
    """Run a recipe into the folder `name`; return the warnings on the way."""
    said: list[str] = []

    def progress(stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
        said.extend(str(info["warning"]) for _ in range("warning" in info))

    settings = [f"fuse.out={name}-fused", *overrides]
    run(load_recipe(recipe, settings), run_dir=name, resume=resume, progress=progress)
    return said


def stop_at(name: str, label: str, step: int, *overrides: str) -> None:
    """Run the recipe, and interrupt a phase after a step."""
    import os
    import signal

    def progress(stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
        if (stage, done) == (label, step) and "loss" in info:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = [f"fuse.out={name}-fused", *overrides]
    with pytest.raises(Interrupted):
        run(load_recipe("recipe.yaml", settings), run_dir=name, progress=progress)


def metrics(name: str) -> list[dict[str, Any]]:
    lines = Path(name, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in VARYING} for line in lines]


def results(name: str) -> dict[str, Any]:
    """Return all files of a run's phases and of its fused model, by name, and its metrics."""
    files = [*Path(name).glob("phase*/*"), *Path(f"{name}-fused").glob("*")]
    found: dict[str, Any] = {
        str(Path(*p.parts[-2:])).replace(name, "X"): p.read_bytes() for p in files
    }
    del found["X-fused/fused.json"], found["X-fused/SHA256SUMS"]  # these name the run's folder
    return {**found, "metrics": sorted(map(json.dumps, metrics(name)))}


def overrides(phase: str, *settings: str) -> list[str]:
    return [f"phases.{phase}.{setting}" for setting in settings]


@pytest.mark.parametrize(
    ("phase", "common", "short", "long"),
    [
        pytest.param("sft", (), ["steps=4"], ["steps=7"], id="first phase"),
        pytest.param("dpo", (), ["steps=4"], ["steps=7"], id="last phase"),
        pytest.param(
            "dpo", ("eval_every_steps=3", "save_every_steps=2"), ["steps=5"], ["steps=8"],
            id="an evaluation at the end alone chooses the adapter",
        ),
        pytest.param(
            "sft", ("batch_size=4", "accumulate=3", "steps=null", "warmup_steps=2"),
            ["epochs=1"], ["epochs=3"], id="a last step that is cut",
        ),
        pytest.param("dpo", ("batch_size=1",), ["steps=3"], ["steps=9"], id="more rows are read"),
        pytest.param("dpo", ("replay_gb=0", "accumulate=2"), ["steps=3"], ["steps=6"], id="plain"),
    ],
)  # fmt: skip
def test_an_extended_run_is_one_that_began_so_long(
    phase: str, common: tuple[str, ...], short: list[str], long: list[str]
) -> None:
    """Adapters, records and metrics, of the phase and of those after it, and the fused model."""
    settings = overrides(phase, *common)
    go("long", *settings, *overrides(phase, *long))
    go("run", *settings, *overrides(phase, *short))
    assert results("run") != results("long")
    go("run", *settings, *overrides(phase, *long), resume=True)
    assert results("run") == results("long")
    assert go("run", *settings, *overrides(phase, *long), resume=True) == []


def test_with_evaluations_a_fifth_of_the_steps_apart_the_adapter_is_the_same() -> None:
    """They come at other steps, and have no say in it; where they have one, the phase begins again."""
    settings = overrides("sft", *NO_EVALUATIONS) + overrides("dpo", *NO_EVALUATIONS)
    go("long", *settings, "phases.sft.steps=15", "phases.dpo.steps=15")
    go("run", *settings)
    said = go("run", *settings, "phases.sft.steps=15", resume=True)
    assert "from the start" not in str(said) and len(said) == 1
    one, other = results("run"), results("long")
    for file in ("adapters.safetensors", "phase.json"):
        assert one[f"phase1_sft/{file}"] == other[f"phase1_sft/{file}"]
    said = go("run", *settings, "phases.sft.steps=15", "phases.dpo.steps=15", resume=True)
    assert "phases.dpo begins again at its first step" in said[1]
    one = results("run")
    for file in ("adapters.safetensors", "phase.json"):
        assert one[f"phase2_dpo/{file}"] == other[f"phase2_dpo/{file}"]


def test_it_goes_on_from_the_steps_that_are_done() -> None:
    go("run")
    steps: list[int] = []

    def progress(stage: str, done: int, total: int, info: Mapping[str, Any]) -> None:
        if stage == "phase2_dpo" and "loss" in info:
            steps.append(done)

    longer = load_recipe("recipe.yaml", ["fuse.out=run-fused", "phases.dpo.steps=8"])
    run(longer, run_dir="run", resume=True, progress=progress)
    assert steps == [6, 7, 8]


@pytest.mark.parametrize("steps", [9, 4])
def test_a_stopped_phase_takes_any_number_of_steps_from_those_done_on(steps: int) -> None:
    go("long", f"phases.dpo.steps={steps}")
    stop_at("run", "phase2_dpo", 3)
    with pytest.raises(RunError, match=r"phases.dpo.steps: 2 is fewer than the 3 that are done"):
        go("run", "phases.dpo.steps=2", resume=True)
    said = go("run", f"phases.dpo.steps={steps}", resume=True)
    assert said == [f"run: phases.dpo has {steps} steps now, not 5"]
    assert results("run") == results("long")


def test_a_phase_that_has_not_begun_takes_any_number_of_steps() -> None:
    go("other", "phases.dpo.steps=2", "phases.dpo.schedule=cosine", "phases.dpo.eval_every_steps=1")
    stop_at("run", "phase1_sft", 3, "phases.dpo.schedule=cosine")
    settings = "phases.dpo.steps=2", "phases.dpo.schedule=cosine", "phases.dpo.save_every_steps=2"
    go("run", *settings, resume=True)
    assert results("run") == results("other")


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_falling_learning_rate_is_refused_with_what_to_do(schedule: str) -> None:
    setting = f"phases.dpo.schedule={schedule}"
    go("run", setting)
    before = results("run")
    with pytest.raises(RunError) as error:
        go("run", setting, "phases.dpo.steps=8", resume=True)
    assert str(error.value) == (
        "run: phases.dpo.steps: its learning rate falls to zero over all steps (schedule: "
        f"{schedule}), so the 5 steps that are done do not begin a phase of another length; start "
        "the longer one with another --run-dir, or go on from this one's adapter in a recipe with "
        "init_from: run/phase2_dpo"
    )
    assert results("run") == before and not Path("run/work/phase2_dpo").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["phases.dpo.steps=4"], "run: phases.dpo.steps: 4 is fewer than the 5 that are done"),
        (["phases.dpo.steps=8", "phases.dpo.lr=0.02"], "run: was started from another recipe"),
        (["phases.sft.steps=8", "adapter.rank=4"], "run: was started from another recipe"),
        (
            ["phases.dpo.steps=null", "phases.dpo.epochs=9"],
            "run: phases.dpo.epochs: 9 would be fewer than it began with (5 steps)",
        ),
    ],
)
def test_what_is_no_extension_is_refused_and_changes_nothing(
    settings: list[str], says: str
) -> None:
    go("run")
    before = results("run")
    line = ["run", "recipe.yaml", "--run-dir", "run", "--resume", "--set", "fuse.out=run-fused"]
    for setting in settings:
        line += ["--set", setting]
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 2 and says in result.output and result.output.count("\n") == 1
    assert results("run") == before
    with pytest.raises(RunError, match="another recipe"):
        train_phase(load_recipe("recipe.yaml", ["phases.sft.steps=9"]), "sft", run_dir="run")


def test_what_is_measured_and_reported_comes_again() -> None:
    """All but the base's measurement, and the command says so."""
    go("long", "phases.sft.steps=3", recipe="measured.yaml")
    go("run", recipe="measured.yaml")
    base = Path("run/benchmarks/base.json")
    before = base.stat().st_mtime_ns
    said = go("run", "phases.sft.steps=3", resume=True, recipe="measured.yaml")
    assert said == [
        "run: phases.sft has 3 steps now, not 1; redone, because they come after it: the "
        "measurements from sft on, the fused model, the report"
    ]
    assert base.stat().st_mtime_ns == before
    names = sorted(p.name for p in Path("long/benchmarks").iterdir())
    assert names == sorted(p.name for p in Path("run/benchmarks").iterdir()) and len(names) == 4
    one, other = (read_json(Path(name, "summary.json")) for name in ("run", "long"))
    assert one["stages"] == [
        {**stage, "adapter": stage["adapter"] and stage["adapter"].replace("long", "run")}
        if "adapter" in stage else stage
        for stage in other["stages"]
    ]  # fmt: skip
    assert "| sft | sft | 3 |" in Path("run/report.md").read_text()


def test_an_extension_that_is_killed_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the phases after it is left, whenever the run goes on."""
    go("long", "phases.sft.steps=7")
    for killed_at in ("_remove_folder", "_remove_results", "write_text"):
        shutil.rmtree("run", ignore_errors=True)
        go("run")

        def kill(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(extending, killed_at, kill)
            with pytest.raises(KeyboardInterrupt):
                go("run", "phases.sft.steps=7", resume=True)
        assert Path("run", JOURNAL).exists()
        with pytest.raises(RunError, match="holds a run already"):
            go("run", "phases.sft.steps=7")
        complete_extension(Path("run"))
        assert not list(Path("run").glob("phase*")) and not Path("run/report.md").exists()
        assert not Path("run/work/phase2_dpo").exists() and not Path("run", JOURNAL).exists()
        assert {line["phase"] for line in metrics("run")} == {"sft"}
        go("run", "phases.sft.steps=7", resume=True)
        assert results("run") == results("long")


def test_a_run_whose_checkpoint_is_gone_begins_the_phase_again() -> None:
    """As those of releases that kept none."""
    go("long", "phases.dpo.steps=7")
    go("run")
    shutil.rmtree("run/work")
    go("run", "phases.dpo.steps=7", resume=True)
    assert results("run") == results("long")


def test_an_old_run_keeps_its_number_of_steps() -> None:
    """Early releases rounded epochs to steps: 6 rows in batches of 4, 3 epochs, were 4 steps."""
    settings = overrides("sft", "batch_size=4", "steps=null", "epochs=3")
    stop_at("old", "phase1_sft", 2, *settings)
    record = read_json(Path("old/run.json"))
    assert record.pop("whole_epochs") is True
    write_json(Path("old/run.json"), record)
    go("old", *settings, resume=True)
    go("new", *settings)
    one, other = (read_json(Path(name, "phase1_sft/phase.json")) for name in ("old", "new"))
    assert (one["steps"], one["exposures"]) == (4, 2.0)
    assert (other["steps"], other["exposures"]) == (6, 3.0)
    shared = [m for m in metrics("old") if m["phase"] == "sft" and "loss" in m]
    assert shared == [m for m in metrics("new") if m["phase"] == "sft" and "loss" in m][:4]


def test_the_plan_and_the_report_show_the_counted_exposures() -> None:
    settings = overrides("sft", "batch_size=4", "steps=null", "epochs=3")
    sets = [part for setting in settings for part in ("--set", setting)]
    planned = CliRunner().invoke(main, ["plan", "recipe.yaml", *sets]).output
    assert "3.00x" in next(line for line in planned.splitlines() if line.startswith("sft "))
    go("run", *settings, "phases.dpo.steps=1", "phases.dpo.save_every_steps=1")
    assert "| sft | sft | 6 | 6 | 3.00 |" in Path("run/report.md").read_text()
    assert read_json(Path("run/phase2_dpo/phase.json"))["exposures"] == 0.5


def test_a_checkpoint_that_another_length_would_not_have_is_marked() -> None:
    """Until the phase trains, a second extension knows what the checkpoint was written under."""
    go("run")
    before, longer = load_recipe("recipe.yaml"), Path("run/work/phase2_dpo", BEGUN_WITH)
    assert before.phases["dpo"].steps == 5
    recipe = Path("run/recipe.yaml").read_text()
    for steps in (7, 9):
        new = recipe.replace("steps: 5\n    epochs: null\n    batch_size: 3", "STEPS")
        head, _, tail = new.rpartition("STEPS")
        new = f"{head}steps: {steps}\n    epochs: null\n    batch_size: 3{tail}"
        new = new.replace("STEPS", "steps: 5\n    epochs: null\n    batch_size: 3")
        found = extending.find_extension(Path("run"), Path("run/recipe.yaml").read_text(), new)
        assert found is not None
        extending.extend(Path("run"), found)
        assert read_json(longer) == {"steps": 5, "epochs": None}
