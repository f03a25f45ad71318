"""The comparison: trainers take turns, every sample is written, and a missing trainer is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from forty2.cli import main
from forty2.errors import BenchmarkError
from forty2.progress import Progress
from forty2.speed import comparison, growth
from forty2.speed.comparison import compare_trainers, median_figures, ratio_of_figures
from forty2.speed.suites import SUITES
from forty2.speed.workers.__main__ import Figures, Job, Measurement

MODEL = Path(__file__).parents[1] / "old_runs" / "inputs" / "model"


def measurement(seconds: float) -> Measurement:
    return Measurement(Figures(seconds, 9.0, 50.0, 1.0, 2.0), {}, "")


def run_peers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run other trainers' workers by this interpreter: mlx-lm is installed here."""
    monkeypatch.setattr(comparison, "peer_python", lambda peer, progress: sys.executable)


def test_ours_and_the_others_run_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def record(python: str, worker: str, job: Job) -> Measurement:
        order.append(worker)
        return measurement(len(order))

    run_peers_here(monkeypatch)
    monkeypatch.setattr(comparison, "measure", record)
    result = compare_trainers(["sft-tail"], rows=8, rounds=3, model=str(MODEL), peers=["mlx-lm"])
    assert order == ["ours_sft", "matmul_rate", "mlx_lm_sft"] * 3
    suite = result.suites["sft-tail"]
    assert (suite.medians["forty2"].seconds, suite.medians["mlx-lm"].seconds) == (4, 6)
    assert suite.ratios["mlx-lm"].seconds == 4 / 6
    assert suite.units == 2  # batches; the floor is that of one
    assert suite.floor is not None
    assert suite.floor.seconds == suite.floor.operations / 2 / suite.floor.operations_per_s


def test_medians_and_ratios_are_taken_figure_by_figure() -> None:
    one, two, three = Figures(1, 9, 2, 4, 3), Figures(2, 8, 6, 5, 1), Figures(9, 7, 4, 6, 2)
    assert median_figures([one, two, three]) == Figures(2, 8, 4, 5, 2)
    assert ratio_of_figures(two, one) == Figures(2, 8 / 9, 3, 5 / 4, 1 / 3)


def test_every_sample_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, mlx-lm's trainer and the machine's rate, really measured."""
    run_peers_here(monkeypatch)
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")  # a compiler would take most of the time
    out = tmp_path / "out.json"
    tables: list[object] = []

    def progress(stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if "table" in info:
            tables.append(info["table"])

    compare_trainers(
        ["sft-tail"],
        rows=4,
        rounds=1,
        model=str(MODEL),
        peers=["mlx-lm"],
        out=out,
        progress=progress,
    )
    written = json.loads(out.read_text())
    suite = written["suites"]["sft-tail"]
    for trainer, (run,) in suite["runs"].items():
        assert all(value > 0 for value in run["figures"].values()), trainer
        assert run["versions"]["mlx"] == written["machine"]["mlx"]
    ours, theirs = suite["medians"]["forty2"], suite["medians"]["mlx-lm"]
    assert suite["ratios"]["mlx-lm"]["seconds"] == ours["seconds"] / theirs["seconds"]
    floor = suite["floor"]
    assert floor["ratio"] == pytest.approx(ours["seconds"] / floor["seconds"])
    assert len(tables) == 1 and "mlx-lm" in str(tables[0])


def test_the_command_measures_ours_alone_and_prints_the_table() -> None:
    arguments = ["--suite", "dpo-short", "--peer", "none", "--rows", "4", "--rounds", "1"]
    done = CliRunner().invoke(main, ["bench", *arguments, "--model", str(MODEL)])
    assert done.exit_code == 0, done.output
    assert "dpo-short" in done.stdout and "forty2" in done.stdout and "floor" in done.stdout


def test_a_trainer_that_cannot_be_had_is_left_out_and_ours_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(peer: str, progress: Progress) -> str:
        raise BenchmarkError(f"{peer}: pip could not install it")

    def fail_if_broken(python: str, worker: str, job: Job) -> Measurement:
        if worker == "broken":
            raise BenchmarkError("broken failed: of course")
        return measurement(1.0)

    monkeypatch.setattr(comparison, "measure", fail_if_broken)
    monkeypatch.setattr(comparison, "peer_python", refuse)
    result = compare_trainers(["sft-tail"], rows=4, model=str(MODEL))
    assert set(result.suites["sft-tail"].left_out) == {"mlx-lm", "unsloth"}
    run_peers_here(monkeypatch)
    working = SUITES["sft-tail"]
    monkeypatch.setitem(SUITES, "sft-tail", replace(working, peers={"mlx-lm": "broken"}))
    suite = compare_trainers(["sft-tail"], rows=4, model=str(MODEL)).suites["sft-tail"]
    assert suite.left_out == {"mlx-lm": "broken failed: of course"}
    assert set(suite.medians) == {"forty2"}
    monkeypatch.setitem(SUITES, "sft-tail", replace(working, ours="broken"))
    with pytest.raises(BenchmarkError, match="broken failed"):
        compare_trainers(["sft-tail"], rows=4, model=str(MODEL))


def test_rows_that_make_no_whole_batches_are_refused() -> None:
    done = CliRunner().invoke(
        main, ["bench", "-s", "sft-tail", "-p", "none", "-m", str(MODEL), "--rows", "6"]
    )
    assert done.exit_code == 2
    assert done.output.splitlines()[-1].startswith("Error: 6 rows do not make whole batches; give")


@pytest.mark.slow
def test_every_worker_of_ours_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {"Yes": 1, "No.": 0}
    asked = [
        {"question": f"Is {n} odd?", "mc1_targets": choices, "mc2_targets": choices}
        for n in range(4)
    ]
    (tmp_path / "truthfulqa").mkdir()
    (tmp_path / "truthfulqa" / "mc_task_v0_817.json").write_text(json.dumps(asked))
    monkeypatch.setenv("FORTY2_BENCH_DATA", str(tmp_path))
    sizes = {"PROMPT_TOKENS": (64, 128), "BATCH_SIZES": (1, 2), "DATA_ROWS": (10, 20)}
    for name, values in sizes.items():
        monkeypatch.setattr(growth, name, values)
    names = ["truthfulqa", "vocabulary", "growth"]
    result = compare_trainers(names, rows=4, rounds=1, model=str(MODEL), peers=[])
    assert result.suites["truthfulqa"].units == 4
    assert result.suites["vocabulary"].medians["forty2"].mlx_gb > 0.05
    assert all(len(curve.seconds_exponents) == 1 for curve in result.growth.values())
    assert set(result.growth) == {"prompt tokens", "batch size", "rows prepared", "rows batched"}
