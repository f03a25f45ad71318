"""The bench: operations are counted right, rows are the same for all, and its workers run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest
from click.testing import CliRunner
from support.models import TINY, tiny_model

from forty2.cli import main
from forty2.errors import BenchmarkError
from forty2.speed import comparison, environments, growth
from forty2.speed.comparison import bench
from forty2.speed.environments import PEERS, measure
from forty2.speed.growth import exponents, points, write_chats
from forty2.speed.operation_count import (
    NOTHING,
    Shapes,
    Work,
    chat,
    dpo_operations,
    linear_counts,
    operations_of,
    scoring_operations,
    sft_operations,
    shapes,
    shared,
)
from forty2.speed.suites import SUITES, compose, large_vocabulary
from forty2.speed.tables import growth_table, suite_table
from forty2.speed.workers.__main__ import Job

MODEL = Path(__file__).parents[1] / "old_runs" / "inputs" / "model"
NO_SHORTCUTS = Shapes(
    frozen=3, trained=5, adapters=7, frozen_width=11, trained_width=13, head=17
)  # primes: a factor in the wrong place shows


# --- operations ---


def attended(prompt: int, responses: list[int], known: int) -> Work:
    """Position by position, as a model goes through a prompt and each response after it."""
    tokens = keys = supervised = 0
    for position in range(known, prompt - 1):
        tokens, keys = tokens + 1, keys + position + 1
    for response in responses:
        for position in range(prompt - 1, prompt - 1 + response):
            tokens, keys, supervised = tokens + 1, keys + position + 1, supervised + 1
    return Work(tokens, keys, supervised)


@pytest.mark.parametrize(
    ("prompt", "responses", "known"),
    [(1, [1], 0), (5, [3, 2], 0), (9, [4, 1, 6], 5), (7, [], 0), (7, [], 6)],
)
def test_work_is_what_a_walk_over_the_tokens_counts(
    prompt: int, responses: list[int], known: int
) -> None:
    assert shared(prompt, responses, known) == attended(prompt, responses, known)


def test_a_chat_is_fed_all_but_its_last_token_and_scored_from_its_start() -> None:
    assert chat(5, 2) == Work(tokens=4, attended=1 + 2 + 3 + 4, supervised=3)
    assert chat(5, 0).supervised == 4  # nothing predicts the first token
    assert sum([chat(5, 2), chat(2, 1)], NOTHING) == Work(5, 11, 4)


def test_operations_are_those_worked_out_by_hand() -> None:
    """Two tokens that attend three keys, one of them supervised.

    Forward, two operations a multiplication: frozen 2·3·2 = 12, and 4·11·3 = 132 in attention;
    trained 2·5·2 = 20 and 4·13·3 = 156; head 2·17·1 = 34. Backward to inputs: trained 20 and
    8·13·3 = 312, head 34. Adapters forward, backward and their own gradients: 6·7·2 = 84.
    """
    work = Work(tokens=2, attended=3, supervised=1)
    frozen, trained, head = 12 + 132, 20 + 156, 34
    backward = 20 + 312 + head + 84
    assert scoring_operations(NO_SHORTCUTS, work) == frozen + trained + head
    assert sft_operations(NO_SHORTCUTS, work) == frozen + trained + head + backward
    assert dpo_operations(NO_SHORTCUTS, work) == frozen + 2 * (trained + head) + backward


def test_shapes_are_those_of_the_model() -> None:
    """TINY's blocks: q and o 32·32, k and v 32·16, three of 32·64; ranks of 4 on the last two."""
    model = tiny_model()
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    adapters = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    expected = Shapes(block, 2 * block, 2 * adapters, 32, 64, 32 * 300)
    assert shapes(model, TINY, layers=2, rank=4) == expected
    assert sum(a * b * times for a, b, times in linear_counts(model)) == 3 * block
    assert operations_of(linear_counts(model), 10) == 2 * 10 * 3 * block
    nn.quantize(model, group_size=32, bits=4)
    assert shapes(model, TINY, layers=2, rank=4) == expected


def test_mixtures_of_experts_have_no_floor() -> None:
    assert shapes(tiny_model(), {**TINY, "num_local_experts": 8}) is None


# --- rows ---


@pytest.mark.parametrize("name", ["dpo-short", "dpo-long", "sft-tail"])
def test_rows_are_the_same_every_time_and_as_long_as_said(name: str) -> None:
    rows = compose(name, 12, MODEL)
    assert rows == compose(name, 12, MODEL)
    assert rows != compose(name, 8, MODEL)
    if name == "sft-tail":
        lengths = [len(ids) for ids, _ in rows.rows]
        assert max(lengths) <= 500 and min(lengths) >= 40 and max(lengths) > 2 * min(lengths)
        assert all(0 < start < len(ids) for ids, start in rows.rows)
        assert rows.tokens == sum(lengths)
        assert rows.work.supervised == sum(len(ids) - start for ids, start in rows.rows)
        return
    shape = (64, 48, 48) if name == "dpo-short" else (384, 64, 64)
    for row in rows.rows:
        assert all(0.7 * n <= len(part) <= 1.3 * n for part, n in zip(row, shape, strict=True))
    assert rows.tokens == sum(len(part) for row in rows.rows for part in row)
    assert rows.work.supervised == sum(len(c) + len(r) for _, c, r in rows.rows)


def test_texts_for_peers_are_read_as_the_very_ids() -> None:
    ids = [7, 12, 120, 1, 0, 257]
    job = Job(str(MODEL), "float32", [], 1)
    tokenizer = job.tokenizer()
    assert tokenizer.encode(job.text(ids), add_special_tokens=False) == ids
    joined = tokenizer.encode(job.text(ids) + job.text([3]), add_special_tokens=False)
    assert joined == [*ids, 3]


def test_growth_measures_rows_of_the_size_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "DATA", (10,))
    for point in points(MODEL, "float32", tmp_path):
        if point.what == "prompt tokens":
            assert {len(prompt) for prompt, _, _ in point.job.rows} == {point.size}
        elif point.what == "batch size":
            assert len(point.job.rows) == growth.STEPS * point.size == point.job.counted // 160
            assert point.job.batch_size == point.size
        else:
            assert len(Path(point.job.rows[0]).read_text().splitlines()) == point.size == 10


def test_exponents_tell_a_square_from_a_line() -> None:
    assert exponents([1, 2, 8], [3, 6, 24]) == pytest.approx([1, 1])
    assert exponents([1, 2, 8], [3, 12, 192]) == pytest.approx([2, 2])


# --- tables ---


def figures(seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "wall_s": 9.0, "per_s": 50.0, "mlx_gb": 1.0, "process_gb": 2.0}


def test_a_table_has_medians_ratios_the_floor_and_who_is_left_out() -> None:
    measured = {
        "unit": "batch",
        "units": 2,
        "source": "here",
        "medians": {"forty2": figures(3.0), "mlx-lm": figures(12.0)},
        "ratios": {"mlx-lm": {"seconds": 0.25, "mlx_gb": 0.5, "process_gb": 0.75}},
        "floor": {"operations": 4e9, "operations_per_s": 1e9, "seconds": 2.0, "ratio": 1.5},
        "left_out": {"unsloth": "pip could not install it"},
    }
    head, ours, theirs, floor, left_out = suite_table("sft-tail", measured).splitlines()
    assert head.split()[:2] == ["sft-tail", "s/batch"]
    assert ours.split() == ["forty2", "3.000", "50.0", "1.00", "2.00"]
    assert theirs.split() == ["mlx-lm", "12.000", "0.25", "50.0", "1.00", "0.50", "2.00", "0.75"]
    assert "2.000 s/batch" in floor and "1.50 times" in floor
    assert left_out.endswith("unsloth left out: pip could not install it")


def test_a_growth_table_puts_an_exponent_behind_its_larger_size() -> None:
    grown = {
        "size": [64, 1024],
        "seconds": [1.0, 4.0],
        "gb": [0.5, 0.6],
        "seconds_exponents": [0.5],
        "gb_exponents": [0.07],
    }
    _, first, second = growth_table({"prompt tokens": grown}).splitlines()
    assert first.split() == ["64", "1.000", "0.50"]
    assert second.split() == ["1,024", "4.000", "0.50", "0.60", "0.07"]


# --- processes ---


def test_a_process_counts_its_own_memory_and_not_that_of_who_started_it() -> None:
    """On Linux `ru_maxrss` would start with the parent's: pytest with mlx holds far more."""
    code = (
        "import runpy, sys; from pathlib import Path; "
        f"peak = runpy.run_path({str(environments.WORKERS / '__main__.py')!r})['process_peak']; "
        "before = peak(); block = bytearray(200_000_000); print(before, peak())"
    )
    ballast = bytearray(400_000_000)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert len(ballast) > 2 * before
    assert 150e6 < after - before < 300e6


def test_a_peer_sees_no_packages_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "{\\"path\\": \\"$PYTHONPATH\\"}"\n')
    python.chmod(0o755)
    assert measure(str(python), "any", Job("", "float32", [], 1)) == {"path": ""}


def test_a_worker_that_fails_is_told_in_one_line() -> None:
    with pytest.raises(BenchmarkError, match=r"^nobody failed: .*No module named 'nobody'$"):
        measure(sys.executable, "nobody", Job(str(MODEL), "float32", [], 1))


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_every_peer_gets_the_mlx_that_runs_ours(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {each.metadata["Name"]: each.version for each in distributions()}
    monkeypatch.setattr(sys, "platform", system)
    off_mac = system == "linux"
    for peer in PEERS.values():
        first, *more = environments._installs(peer)
        assert first[0].endswith(f"=={here['mlx']}")
        assert peer.package in (more[0] if more else first)
        assert bool(more) == (off_mac and peer.off_mac is not None)
        blas = [wanted for wanted in first if wanted.startswith("cmeel-openblas==")]
        assert bool(blas) == (off_mac and "cmeel-openblas" in here)


def in_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlx-lm is installed here, so that its worker can run without a download."""
    monkeypatch.setattr(comparison, "python_of", lambda peer, say: sys.executable)


def test_ours_and_the_peer_run_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    def noted(python: str, worker: str, job: Job) -> dict[str, Any]:
        order.append(worker)
        return {"figures": figures(len(order))}

    in_our_own(monkeypatch)
    monkeypatch.setattr(comparison, "measure", noted)
    result = bench(
        ["sft-tail"], rows=8, rounds=3, model=str(MODEL), peers=["mlx-lm"], say=lambda _: None
    )
    assert order == ["ours_sft", "matmul_rate", "mlx_lm_sft"] * 3
    suite = result["suites"]["sft-tail"]
    medians, floor = suite["medians"], suite["floor"]
    assert (medians["forty2"]["seconds"], medians["mlx-lm"]["seconds"]) == (4, 6)
    assert suite["units"] == 2  # batches, of which the floor is that of one
    assert floor["seconds"] == floor["operations"] / 2 / floor["operations_per_s"]


def test_every_sample_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, mlx-lm's trainer and the machine's rate, really measured."""
    in_our_own(monkeypatch)
    monkeypatch.setenv("MLX_DISABLE_COMPILE", "1")  # a compiler would take most of the time
    out = tmp_path / "out.json"
    said: list[str] = []
    bench(
        ["sft-tail"],
        rows=4,
        rounds=1,
        model=str(MODEL),
        peers=["mlx-lm"],
        out=out,
        say=said.append,
    )
    written = json.loads(out.read_text())
    suite = written["suites"]["sft-tail"]
    for who, (run,) in suite["runs"].items():
        assert all(value > 0 for value in run["figures"].values()), who
        assert run["versions"]["mlx"] == written["machine"]["mlx"]
    ours, theirs = suite["medians"]["forty2"], suite["medians"]["mlx-lm"]
    assert suite["ratios"]["mlx-lm"]["seconds"] == ours["seconds"] / theirs["seconds"]
    floor = suite["floor"]
    assert floor["ratio"] == pytest.approx(ours["seconds"] / floor["seconds"])
    assert len(said) == 1 and "mlx-lm" in said[0]


def test_the_command_runs_ours_alone() -> None:
    """Through every option, on a model of a few thousand weights."""
    arguments = ["--suite", "dpo-short", "--peer", "none", "--rows", "4", "--rounds", "1"]
    done = CliRunner().invoke(main, ["bench", *arguments, "--model", str(MODEL)])
    assert done.exit_code == 0, done.output
    assert "dpo-short" in done.output and "forty2" in done.output and "floor" in done.output


def test_a_peer_that_is_not_to_be_had_is_left_out_and_ours_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(peer: str, say: Callable[[str], None]) -> str:
        raise BenchmarkError(f"{peer}: pip could not install it")

    def fails(python: str, worker: str, job: Job) -> dict[str, Any]:
        if worker == "broken":
            raise BenchmarkError("broken failed: of course")
        return {"figures": figures(1.0)}

    monkeypatch.setattr(comparison, "measure", fails)
    monkeypatch.setattr(comparison, "python_of", refused)
    result = bench(["sft-tail"], rows=4, model=str(MODEL), say=lambda _: None)
    assert set(result["suites"]["sft-tail"]["left_out"]) == {"mlx-lm", "unsloth"}
    in_our_own(monkeypatch)
    monkeypatch.setitem(SUITES, "sft-tail", SUITES["sft-tail"]._replace(peers={"mlx-lm": "broken"}))
    suite = bench(["sft-tail"], rows=4, model=str(MODEL), say=lambda _: None)["suites"]["sft-tail"]
    assert suite["left_out"] == {"mlx-lm": "broken failed: of course"}
    assert set(suite["medians"]) == {"forty2"}
    monkeypatch.setitem(SUITES, "sft-tail", SUITES["sft-tail"]._replace(ours="broken"))
    monkeypatch.setitem(comparison.OPERATIONS, "broken", sft_operations)
    with pytest.raises(BenchmarkError, match="broken failed"):
        bench(["sft-tail"], rows=4, model=str(MODEL), say=lambda _: None)


def test_rows_that_make_no_whole_batches_are_refused() -> None:
    done = CliRunner().invoke(
        main, ["bench", "-s", "sft-tail", "-p", "none", "-m", str(MODEL), "--rows", "6"]
    )
    assert done.exit_code == 2
    assert done.output.splitlines()[-1].startswith("Error: 6 rows: give a multiple of 4")


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
    for name, sizes in (("PROMPTS", (64, 128)), ("BATCHES", (1, 2)), ("DATA", (10, 20))):
        monkeypatch.setattr(growth, name, sizes)
    names = ["truthfulqa", "vocabulary", "growth"]
    result = bench(names, rows=4, rounds=1, model=str(MODEL), peers=[], say=lambda _: None)
    assert result["suites"]["truthfulqa"]["units"] == 4
    assert result["suites"]["vocabulary"]["medians"]["forty2"]["mlx_gb"] > 0.05
    assert all(len(grown["seconds_exponents"]) == 1 for grown in result["growth"].values())
    assert set(result["growth"]) == {"prompt tokens", "batch size", "rows prepared", "rows batched"}


def test_the_large_vocabulary_is_one_that_mlx_lm_loads(tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    model, config = load_model(large_vocabulary(tmp_path / "model"), lazy=True)
    assert config["vocab_size"] == 200_064
    whole = shapes(model, config)
    assert whole is not None and whole.head > 50 * whole.trained


def test_data_of_any_size_has_no_row_twice(tmp_path: Path) -> None:
    write_chats(tmp_path / "chats.jsonl", 50)
    lines = (tmp_path / "chats.jsonl").read_text().splitlines()
    assert len(set(lines)) == 50
