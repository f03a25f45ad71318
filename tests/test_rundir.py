"""Run directories: one writer, nothing half-written, another recipe refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from forty2.errors import RunError
from forty2.rundir import RunDir, read_json, staged, write_bytes, write_json


def test_a_second_process_is_refused_with_the_owner(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "run", "a: 1\n", {}, resume=False):
        script = (
            "from pathlib import Path; from forty2.rundir import RunDir\n"
            f"RunDir.open(Path({str(tmp_path / 'run')!r}), 'a: 1\\n', {{}}, resume=True)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode != 0
        assert "in use by process" in done.stderr
    with RunDir.open(tmp_path / "run", "a: 1\n", {}, resume=True):
        pass  # a lock whose owner is gone does not hold


def test_an_existing_run_is_not_overwritten_nor_resumed_with_another_recipe(tmp_path: Path) -> None:
    with RunDir.open(tmp_path, "name: x\nsteps: 5\n", {}, resume=False):
        pass
    with pytest.raises(RunError, match=r"--resume"):
        RunDir.open(tmp_path, "name: x\nsteps: 5\n", {}, resume=False)
    with pytest.raises(RunError, match=r"another recipe .*'steps: 6'"):
        RunDir.open(tmp_path, "name: x\nsteps: 6\n", {}, resume=True)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match=r"is not empty"):
        RunDir.open(other, "", {}, resume=False)


def test_metrics_are_whole_lines_and_can_be_rewound(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "run", "", {}, resume=False) as run:
        for step in range(4):
            run.log({"phase": "sft", "step": step})
        run.log({"phase": "dpo", "step": 9})
        with run.metrics_path.open("a") as file:
            file.write('{"phase": "dpo", "st')  # the power went
        run.forget_metrics_after("sft", 1)
        assert [(r["phase"], r["step"]) for r in run.metrics()] == [
            ("sft", 0),
            ("sft", 1),
            ("dpo", 9),
        ]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_a_folder_takes_its_name_only_when_whole(tmp_path: Path) -> None:
    with staged(tmp_path / "out") as folder:
        write_bytes(folder / "a", b"1")
    with pytest.raises(RuntimeError), staged(tmp_path / "out") as folder:
        write_bytes(folder / "b", b"2")
        raise RuntimeError
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"x\.json: not readable as JSON"):
        read_json(tmp_path / "x.json")
