"""Run directories: one writer, nothing half-written, another recipe refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from forty2.errors import RunError
from forty2.rundir import (
    RunDir,
    check_room,
    damage,
    read_json,
    seal,
    staged,
    write_bytes,
    write_json,
)


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


def test_a_run_that_died_before_it_began_can_be_started(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("a: ")
    (tmp_path / ".run.json.4194305").write_text("{")  # no process has such a number
    with RunDir.open(tmp_path, "a: 1\n", {}, resume=False):
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "recipe.yaml", "run.json", "run.lock",
        ]  # fmt: skip
    assert (tmp_path / "recipe.yaml").read_text() == "a: 1\n"


def test_leftovers_of_ended_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    for name in (".out.4194305", ".out.4194305.old", ".out.1", ".other.4194305"):
        (tmp_path / name).mkdir()
    with staged(tmp_path / "out"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.4194305", ".out.1", "out"]


def test_a_sealed_folder_shows_every_change(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"12")
    seal(tmp_path)
    assert damage(tmp_path) is None
    write_bytes(tmp_path / "b", b"")
    assert damage(tmp_path) == f"{tmp_path / 'b'} is damaged"
    (tmp_path / "b").unlink()
    sums = (tmp_path / "SHA256SUMS").read_bytes()
    for at in range(len(sums)):
        for bit in (1, 32):
            (tmp_path / "SHA256SUMS").write_bytes(
                sums[:at] + bytes([sums[at] ^ bit]) + sums[at + 1 :]
            )
            assert damage(tmp_path) is not None, at
    (tmp_path / "SHA256SUMS").write_bytes(b"")
    assert damage(tmp_path) is not None


def test_too_full_a_disk_is_found_out_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000_000))
    check_room({tmp_path / "run" / "work": 3_000_000_000, tmp_path / "fused": 2_000_000_000})
    with pytest.raises(RunError, match=r"fused: about 5.10 GB .* 5.00 GB are free; make room"):
        check_room({tmp_path / "run" / "work": 3_000_000_000, tmp_path / "fused": 2_100_000_000})
