"""Gates of a base model: judged by intervals, every benchmark measured once, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.cli import forty2, refused
from support.small_run import make_inputs

from forty2.benchmark import runner
from forty2.benchmark.base_gates import (
    GateResult,
    GateSettings,
    gated_benchmarks,
    measure_gates,
    parse_gate,
    summary,
)
from forty2.errors import BenchmarkError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_inputs(tmp_path_factory.mktemp("gates") / "inputs") / "model")


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixty short questions of one subject, whose right choice is always the same."""
    folder = tmp_path_factory.mktemp("mmlu")
    head = "question,choice0,choice1,choice2,choice3,answer\n"
    for part, n in (("test", 60), ("dev", 5)):
        (folder / part).mkdir()
        rows = "".join(f"{part} {i}?,a,b,c,d,{i % 4}\n" for i in range(n))
        (folder / part / f"law_{part}.csv").write_text(head + rows)
    return str(folder)


def one(score: float, low: float, high: float, least: float) -> GateResult:
    answer: Any = "passed" if low >= least else "failed" if high < least else "cannot be told"
    return GateResult("mmlu", "mmlu", score, low, high, 60, least, answer, "x", None)


def test_a_gate_is_judged_by_the_whole_interval(model: str, mmlu: str) -> None:
    """A guess is right on a quarter of sixty questions, 16% to 38%."""
    gates = [parse_gate(f"mmlu={least}") for least in (0.02, 0.25, 0.9)]
    results = measure_gates(gates, model, settings=GateSettings(data={"mmlu": mmlu}))
    assert [result.answer for result in results] == ["passed", "cannot be told", "failed"]
    low, middle, high = results
    assert low.score == middle.score == high.score and low.n == 60
    assert low.low < low.score < low.high


def test_each_benchmark_is_measured_once_and_read_back(
    model: str, mmlu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    measure = runner.measure

    def count(task: Any, *args: Any, **settings: Any) -> Any:
        measured.append(task.name)
        return measure(task, *args, **settings)

    monkeypatch.setattr(runner, "measure", count)
    gates = [parse_gate("mmlu=0.1"), parse_gate("mmlu:mmlu=0.5")]
    settings = GateSettings(data={"mmlu": mmlu}, n=20)
    first = measure_gates(gates, model, settings=settings, out=tmp_path)
    again = measure_gates(gates, model, settings=settings, out=tmp_path, resume=True)
    assert first == again and measured == ["mmlu"]
    assert len(json.loads((tmp_path / "mmlu.json").read_text("utf-8"))["items"]) == 20
    with pytest.raises(BenchmarkError, match=r"mmlu\.json: is a result of other questions"):
        measure_gates(
            gates, model, settings=GateSettings(data={"mmlu": mmlu}), out=tmp_path, resume=True
        )


@pytest.mark.parametrize("resume", [True, False])
def test_results_of_other_weights_under_the_same_name_are_not_taken(
    model: str, mmlu: str, tmp_path: Path, resume: bool
) -> None:
    named, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(model, named)
    settings = GateSettings(data={"mmlu": mmlu}, n=4)
    measure_gates([parse_gate("mmlu=0.1")], str(named), settings=settings, out=out)
    (weights,) = named.glob("model*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BenchmarkError, match="out: holds results of another model; name another"):
        measure_gates(
            [parse_gate("mmlu=0.1")], str(named), settings=settings, out=out, resume=resume
        )
    (out / "model.json").unlink()
    with pytest.raises(BenchmarkError, match="out: holds results of another model"):
        measure_gates(
            [parse_gate("mmlu=0.1")], str(named), settings=settings, out=out, resume=resume
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mmlu", "write NAME=SHARE"),
        ("mmlu=60", "between 0 and 1"),
        ("mmlu=nan", "between 0 and 1"),
        ("mnlu=0.6", "no benchmark 'mnlu'"),
        ("perplexity=0.6", "no benchmark 'perplexity'"),
        ("mmlu:acc=0.6", "mmlu has no 'acc', but mmlu"),
    ],
)
def test_gates_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        parse_gate(text)


def test_gates_are_for_benchmarks_with_shares() -> None:
    assert {"mmlu", "gsm8k", "humaneval", "truthfulqa"} <= {*gated_benchmarks()}
    assert not {"perplexity", "behaviour", "reply_style"} & {*gated_benchmarks()}


def test_missing_questions_are_found_before_any_model_runs(
    monkeypatch: pytest.MonkeyPatch, mmlu: str
) -> None:
    monkeypatch.delenv("FORTY2_BENCH_DATA", raising=False)
    with pytest.raises(BenchmarkError, match="gsm8k: its questions are not here"):
        measure_gates([parse_gate("gsm8k=0.5")], "no such model")
    with pytest.raises(BenchmarkError, match="data of mmlu: no gate is over it"):
        measure_gates(
            [parse_gate("gsm8k=0.5")], "no such model", settings=GateSettings(data={"mmlu": mmlu})
        )
    with pytest.raises(BenchmarkError, match="no gates"):
        measure_gates([], "no such model")


def test_the_summary_names_what_failed_first() -> None:
    good, bad, unclear = one(0.7, 0.6, 0.8, 0.5), one(0.2, 0.1, 0.3, 0.5), one(0.5, 0.4, 0.6, 0.5)
    assert summary([good]) == "The gate passed."
    assert summary([good, good]) == "All 2 gates passed."
    said = summary([good, bad, unclear])
    assert said.startswith("1 of 3 gates failed: mmlu mmlu; passed: mmlu mmlu; too few questions")
    assert "cannot be told" in str(unclear)


# --- at the command line --------------------------------------------------------------------------


def test_a_failed_gate_exits_with_code_1(model: str, mmlu: str) -> None:
    command = ["benchmark", "base", "--model", model, "--data", f"mmlu={mmlu}"]
    failed = forty2(*command, "--gate", "mmlu=0.9", "--json")
    assert failed.exit_code == 1
    record = json.loads(failed.output.splitlines()[-1])
    assert record["schema"] == "forty2.benchmark.base/1" and record["failed"] == 1
    passed = forty2(*command, "--gate", "mmlu=0.02", "--gate", "mmlu=0.25")
    assert passed.exit_code == 0, passed.output
    assert "too few questions to tell" in passed.output


def test_mistakes_are_one_line(model: str) -> None:
    command = ["benchmark", "base", "--model", model, "--gate", "mmlu=0.5"]
    assert "write NAME=PATH" in refused(*command, "--data", "mmlu")
    assert "--resume needs the --out" in refused(*command, "--resume")
