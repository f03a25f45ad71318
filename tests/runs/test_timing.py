"""A plan's time comes from batches of the run itself, multiplied by what the run computes."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner
from support.small_run import make_inputs

from forty2.cli import main
from forty2.model.adapter import adapter_weights
from forty2.model.initial_adapter import attach_initial_adapter
from forty2.recipe.reading import load_recipe
from forty2.recipe.schema import Benchmark, BenchmarkTask
from forty2.runs import planning, timing
from forty2.runs.planning import RunForecast, format_plan, longest_work, plan
from forty2.runs.timing import PhaseTime, RunTime


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mx.random.seed(0)
    return make_inputs(tmp_path_factory.mktemp("inputs") / "inputs")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def second_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second whenever it is read."""
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr("forty2.runs.timing.time.perf_counter", lambda: next(clock))


def planned(inputs: Path, name: str, *overrides: str) -> RunForecast:
    prompts = ["phases.sft.eval_prompts=null"] if name == "recipe" else []
    return plan(load_recipe(inputs / f"{name}.yaml", [*prompts, *overrides]))


def timed(inputs: Path, name: str, *overrides: str) -> RunTime:
    time = planned(inputs, name, *overrides).time
    assert time is not None
    return time


@pytest.mark.usefixtures("second_each")
def test_twice_the_steps_take_twice_the_time(inputs: Path) -> None:
    lengths = [
        timed(inputs, "recipe", f"phases.sft.steps={steps}", "phases.sft.eval_every_steps=2")
        for steps in (4, 8)
    ]
    short, long = (one.phases["sft"] for one in lengths)
    assert 1.5 < long.steps / short.steps < 2.5  # of other batches, which have other lengths
    assert long.evaluations == pytest.approx(short.evaluations * 5 / 3)  # one precedes the steps


def test_a_reference_is_computed_before_the_steps_of_a_phase_that_needs_one(inputs: Path) -> None:
    phases = timed(inputs, "recipe", "phases.sft.replay_gb=0", "phases.dpo.replay_gb=0").phases
    assert phases["dpo"].before > 5 * phases["sft"].before


def test_texts_are_timed_though_they_have_no_prompts(inputs: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "A river is older than its bridge."}\n' * 4)
    assert timed(inputs, "measured", f"phases.sft.data={texts}").phases["sft"].steps > 0


def test_every_stage_is_measured_the_fused_models_too(inputs: Path) -> None:
    time = timed(inputs, "measured")
    assert time.stages == 4 and time.each_stage > 0
    total = sum(phase.seconds for phase in time.phases.values()) + 4 * time.each_stage
    assert time.seconds == pytest.approx(total)


def test_programs_that_a_model_writes_are_not_run_for_a_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = [
        BenchmarkTask(task="truthfulqa"),
        BenchmarkTask(task="humaneval", data="x", run_untrusted_code=True),
    ]
    benchmark = Benchmark(questions="probe", tasks=tasks)
    loaded: Any = None
    stage = timing._StageTimer(loaded, benchmark, 0, timing._ReplyTime(0, 0), 0.0, None)
    assert stage.left_out == ("humaneval",)
    measurement = SimpleNamespace(tasks={"humaneval": (None, None)}, facts_alone=True, n=1)
    monkeypatch.setattr(timing, "load_measurement", lambda *_: measurement)
    monkeypatch.setattr(timing._StageTimer, "_always_seconds", lambda *_, **__: 0.0)
    assert stage.time_stage() == 0.0


def test_timing_trains_nothing(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[Any, dict[str, Any]]] = []

    def attached(model: Any, recipe: Any, **given: Any) -> None:
        attach_initial_adapter(model, recipe, **given)
        found.append((model, weights(model)))

    def weights(model: Any) -> dict[str, Any]:
        return {name: value.tolist() for name, value in adapter_weights(model).items()}

    monkeypatch.setattr("forty2.runs.timing.attach_initial_adapter", attached)
    timed(inputs, "recipe")
    ((model, before),) = found
    assert weights(model) == before != {}


def test_a_quick_plan_times_nothing_and_says_so(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a quick plan computes nothing")

    monkeypatch.setattr(planning, "time_run", refuse)
    result = CliRunner().invoke(main, ["plan", str(inputs / "recipe.yaml"), "--quick"])
    assert result.exit_code == 0, result.output
    assert "time: not measured (--quick)" in result.output


def test_the_table_has_each_phase_the_sum_and_what_is_left_out(inputs: Path) -> None:
    recipe = load_recipe(inputs / "recipe.yaml")
    forecast = plan(recipe, quick=True)
    time = RunTime(
        {"sft": PhaseTime(5, 300, 60), "dpo": PhaseTime(0, 0, 1)}, 3, 120, ("humaneval",)
    )
    lines = format_plan(forecast._replace(time=time)).splitlines()
    assert "sft           5 s  5 min         60 s   6 min" in lines
    assert "measuring: 3 stages, 2 min each" in lines
    (last,) = [line for line in lines if line.startswith("time: about")]
    assert last.startswith("time: about 12 min,")
    assert lines[lines.index(last) + 1].startswith("not in it: humaneval, loading")


def test_a_phase_without_a_reference_pass_says_so(inputs: Path) -> None:
    forecast = plan(load_recipe(inputs / "recipe.yaml"), quick=True)
    line = "dpo: simpo needs no reference, so no pass computes one"
    assert line not in format_plan(forecast).splitlines()
    phases = tuple(
        one._replace(objective="simpo") if one.name == "dpo" else one for one in forecast.phases
    )
    assert line in format_plan(forecast._replace(phases=phases)).splitlines()


def test_a_long_run_names_what_takes_longest_and_what_shortens_it(inputs: Path) -> None:
    recipe = load_recipe(inputs / "recipe.yaml", ["phases.sft.steps=100", "phases.dpo.steps=200"])
    phases = plan(recipe, quick=True).phases

    def said(sft: float, dpo: float, each_stage: float) -> str:
        times = {"sft": PhaseTime(0, sft, 0), "dpo": PhaseTime(0, dpo, 0)}
        return longest_work(recipe, phases, RunTime(times, 3, each_stage))

    assert said(100, 100, 10) == ""
    assert said(100, 600, 1000) == (
        "longest: measuring 3 stages, 50 min; for a shorter try: `overrides=benchmark.n=50` "
        "`overrides=phases.dpo.steps=40`"
    )
    times = {"sft": PhaseTime(0, 100, 0), "dpo": PhaseTime(0, 600, 0)}
    assert longest_work(recipe, phases, RunTime(times, 5, 1000)).endswith(
        "for a shorter try: `overrides=benchmark.n=50` `overrides=benchmark.each_phase=false`"
    )
    assert said(900, 80, 0) == (
        "longest: training sft, 15 min; for a shorter try: `overrides=phases.sft.steps=20`"
    )
