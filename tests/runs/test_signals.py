"""Real signals to real commands: one line, the exit code of the signal, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

INPUTS = Path(__file__).parents[1] / "old_runs" / "inputs"
COMMANDS = {
    "prepare": "data prepare -i many.jsonl --model model --output-dir out",
    "benchmark": "benchmark truthfulqa --model model --out out.json",
}
BOTH = pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
LONG = "run recipe.yaml --run-dir run --set phases.sft.steps=100000 --set phases.sft.valid=null"


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "FORTY2_CACHE": str(folder / "cache"), "OPENBLAS_NUM_THREADS": "1"}


def struck(
    folder: Path, command: str, number: signal.Signals, when: Callable[[], object]
) -> tuple[int, str]:
    """The exit code and last words of a command that gets a signal as soon as `when` holds."""
    # Started in the background of a shell, this process ignores SIGINT, and so would a child.
    heed = f"import signal; signal.signal({number}, {{2: signal.default_int_handler}}.get({number}"
    script = f"{heed}, signal.SIG_DFL)); from forty2.cli import main; main()"
    said = folder / "said.txt"
    with said.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-c", script, *command.split()],
            cwd=folder,
            stdout=out,
            stderr=out,
            env=environment(folder),
        )
    deadline = time.monotonic() + 60
    while not when():
        assert child.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.002)
    child.send_signal(number)
    code = child.wait(60)
    return code, said.read_text().replace("\r", "\n")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    shutil.copytree(INPUTS, tmp_path, dirs_exist_ok=True)
    row = (tmp_path / "sft.jsonl").read_text().splitlines()[-1]
    (tmp_path / "many.jsonl").write_text(
        "".join(row.replace("Count to 5", f"Count to {n}") + "\n" for n in range(20_000))
    )
    return tmp_path


def last_line(said: str) -> str:
    assert "Traceback" not in said, said
    return [line for line in said.splitlines() if line][-1]


@BOTH
def test_a_run_in_training_saves_its_step(number: signal.Signals, place: Path) -> None:
    metrics = place / "run" / "metrics.jsonl"
    code, said = struck(place, LONG, number, lambda: metrics.exists() and metrics.stat().st_size)
    assert code == 128 + number, said
    line = last_line(said)
    assert line.startswith(f"Error: sft: stopped by {number.name} after step "), said
    assert line.partition("; to go on: ")[2] == f"forty2 {LONG} --resume"
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert (place / "run/work/phase1_sft" / f"step{steps[-1]}").is_dir()


@BOTH
def test_a_run_that_still_loads_stops_in_one_line(number: signal.Signals, place: Path) -> None:
    code, said = struck(place, LONG, number, (place / "run" / "run.json").exists)
    assert code == 128 + number, said
    assert last_line(said).startswith(f"Error: stopped by {number.name}; no file is half-written")
    assert json.loads((place / "run" / "run.json").read_text())["name"] == "old"
    assert not list(place.rglob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["prepare", pytest.param("benchmark", marks=pytest.mark.slow)])
def test_other_commands_stop_in_one_line_and_leave_nothing(
    name: str, number: signal.Signals, place: Path
) -> None:
    before = {p.name for p in place.iterdir()} | {"said.txt", "cache"}

    def begun() -> bool:
        new = {p.name for p in place.iterdir()} - before
        return bool(new) or (place / "said.txt").stat().st_size > 0

    code, said = struck(place, COMMANDS[name], number, begun)
    assert code == 128 + number, said
    assert last_line(said).startswith(f"Error: stopped by {number.name}; no file is half-written")
    assert {p.name for p in place.iterdir()} <= before | {"out.json.part"}
