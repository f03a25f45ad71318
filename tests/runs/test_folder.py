"""Run directories: one writer, nothing half-written, another recipe refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import pytest
from support.runs import PROVENANCE

from forty2.errors import RunError
from forty2.files import (
    read_json,
    remove_leftovers,
    staged_folder,
    write_bytes,
    write_json,
)
from forty2.runs.folder import RunFolder, read_times


def test_a_second_process_is_refused_with_the_owner(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", "a: 1\n", PROVENANCE, resume=False):
        script = (
            "from pathlib import Path; from forty2.runs.folder import RunFolder\n"
            "from forty2.runs.records import Provenance\n"
            f"RunFolder.open(Path({str(tmp_path / 'run')!r}), 'a: 1\\n', {PROVENANCE!r}, resume=True)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode != 0
        assert "in use by process" in done.stderr
    with RunFolder.open(tmp_path / "run", "a: 1\n", PROVENANCE, resume=True):
        pass  # a lock whose owner is gone does not hold


def test_an_existing_run_is_not_overwritten_nor_resumed_with_another_recipe(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "name: x\nsteps: 5\n", PROVENANCE, resume=False) as run:
        run.log({"phase": "sft", "step": 1})
    with pytest.raises(RunError, match=r"`resume=True`"):
        RunFolder.open(tmp_path, "name: x\nsteps: 5\n", PROVENANCE, resume=False)
    with pytest.raises(RunError, match=r"another recipe .steps: 5 → 6"):
        RunFolder.open(tmp_path, "name: x\nsteps: 6\n", PROVENANCE, resume=True)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match=r"is not empty"):
        RunFolder.open(other, "", PROVENANCE, resume=False)


def test_metrics_are_whole_lines_and_can_be_rewound(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", "", PROVENANCE, resume=False) as run:
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


def test_times_outlive_a_kill_and_a_resume_but_not_another_beginning(tmp_path: Path) -> None:
    def open_(recipe: str = "", resume: bool = True) -> RunFolder:
        return RunFolder.open(tmp_path / "run", recipe, PROVENANCE, resume=resume)

    with open_() as run:
        run.log_time({"stage": "reading", "seconds": 9.0})
    with open_(resume=False) as run:
        assert run.notice is None and not read_times(run.path)
        run.log_time({"stage": "reading", "seconds": 1.0})
    record = run.path / "run.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "started": "2026-01-01"}))
    with open_("steps: 2") as run:
        assert run.notice is not None and "begins anew" in run.notice
        assert json.loads(record.read_text())["started"] == "2026-01-01"
    with open_("steps: 2") as run:
        assert run.notice is None
        run.log({"phase": "sft", "step": 1})
        run.log_time({"stage": "training sft", "seconds": 2.0})
        with (run.path / "times.jsonl").open("a") as file:
            file.write('{"stage": "tra')  # killed
    with open_("steps: 2") as run:
        run.log_time({"stage": "training sft", "seconds": 3.0})
        assert [record["seconds"] for record in read_times(run.path)] == [1.0, 2.0, 3.0]


def test_a_run_that_died_before_it_began_can_be_started(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("a: ")
    (tmp_path / ".run.json.4194305").write_text("{")  # no process has such a number
    with RunFolder.open(tmp_path, "a: 1\n", PROVENANCE, resume=False):
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "recipe.yaml",
            "run.json",
            "run.lock",
        ]
    assert (tmp_path / "recipe.yaml").read_text() == "a: 1\n"


def modes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): oct(p.stat().st_mode & 0o777) for p in sorted(folder.rglob("*"))
    }


@pytest.mark.usefixtures("common_umask")
def test_what_is_written_is_for_its_owner_alone(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "runs" / "run", "a: 1\n", PROVENANCE, resume=False) as run:
        run.log({"phase": "sft", "step": 1})
        with staged_folder(run.path / "work" / "step1") as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "weights").write_bytes(b"as mlx writes them")
    found = modes(tmp_path)
    folders = {"runs", "runs/run", "runs/run/work"}
    folders |= {f"runs/run/work/step1{rest}" for rest in ("", "/inner")}
    assert {name for name, mode in found.items() if mode == "0o700"} == folders
    assert {mode for name, mode in found.items() if name not in folders} == {"0o600"}


@pytest.mark.usefixtures("common_umask")
def test_what_others_could_read_they_still_can(tmp_path: Path) -> None:
    shared, run = tmp_path / "shared", tmp_path / "run"
    run.mkdir(mode=0o750)
    shared.mkdir(mode=0o755)
    (shared / "report.html").write_text("old")
    write_bytes(shared / "report.html", b"new")
    with staged_folder(shared / "set") as folder:
        write_bytes(folder / "rows", b"1")
    (shared / "set").chmod(0o755)
    with staged_folder(shared / "set") as folder:
        write_bytes(folder / "rows", b"2")
    with RunFolder.open(run, "", PROVENANCE, resume=False):
        assert run.stat().st_mode & 0o777 == 0o750
    assert modes(shared) == {"report.html": "0o644", "set": "0o755", "set/rows": "0o644"}


def test_links_are_neither_followed_nor_swept_through(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (outside / "thesis.txt").write_text("precious")
    with RunFolder.open(run, "a: 1\n", PROVENANCE, resume=False):
        pass
    (run / ".out.4194305").symlink_to(outside)
    (run / "inside").symlink_to(run / "run.json")
    for link in (run / "work", run / "deep" / "best", run / "gone"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside if link.name != "gone" else tmp_path / "nowhere")
        (run / ".out.4194305").unlink(missing_ok=True)
        with pytest.raises(RunError, match=rf"{link}: is a link that leads out of the run"):
            RunFolder.open(run, "a: 1\n", PROVENANCE, resume=True)
        link.unlink()
    with staged_folder(tmp_path / "out"):
        pass
    (tmp_path / ".out.4194305").symlink_to(outside)
    (tmp_path / ".thesis.4194305").symlink_to(outside / "thesis.txt")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "outside", "run"]
    with RunFolder.open(run, "a: 1\n", PROVENANCE, resume=True):
        assert (outside / "thesis.txt").read_text() == "precious"


def test_a_link_in_the_lock_s_place_empties_nothing(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(RunError, match=r"run\.lock: is a link that leads out"):
        RunFolder.open(tmp_path / "run", "", PROVENANCE, resume=False)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("harm", ["removed", "moved", "replaced"])
def test_a_run_whose_folder_vanishes_says_so_and_writes_nowhere(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with RunFolder.open(path, "", PROVENANCE, resume=False) as run:
        run.log({"phase": "sft", "step": 1})
        path.rename(tmp_path / "moved")
        if harm == "removed":
            shutil.rmtree(tmp_path / "moved")
        if harm == "replaced":
            with RunFolder.open(path, "", PROVENANCE, resume=False) as other:
                other.log({"phase": "sft", "step": 7})
        with pytest.raises(RunError, match=r"run: was removed, moved or replaced while .*put it b"):
            run.log({"phase": "sft", "step": 2})
    if harm == "replaced":
        assert [r["step"] for r in other.metrics()] == [7]
    else:
        assert not path.exists()


def test_a_full_disk_is_named_and_what_was_there_stays(small_disk: Path) -> None:
    with RunFolder.open(small_disk / "run", "a: 1\n", PROVENANCE, resume=False) as run:
        kept = run.path / "work" / "step1"
        for size in (100_000, 250_000):
            told = pytest.raises(RunError, match="the disk is full; make room")
            with told if size > 200_000 else nullcontext(), staged_folder(kept) as folder:
                write_bytes(folder / "weights", b"1" * size)
        assert (kept / "weights").stat().st_size == 100_000
        (small_disk / "filler").write_bytes(b"1" * 110_000)
        with pytest.raises(RunError, match=r"metrics\.jsonl: .*disk is full; make room"):
            for step in range(10_000):
                run.log({"phase": "sft", "step": step})
        assert run.metrics()[-1]["step"] > 0
        (small_disk / "filler").unlink()
        run.forget_metrics_after("sft", 3)
        assert [r["step"] for r in run.metrics()] == [0, 1, 2, 3]


def test_a_disk_that_turns_read_only_is_named_and_what_was_there_stays(small_disk: Path) -> None:
    with RunFolder.open(small_disk / "run", "a: 1\n", PROVENANCE, resume=False) as run:
        write_json(run.path / "x.json", 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(
        RunError, match=r"Read-only file system; make it writable, then start again"
    ):
        RunFolder.open(run.path, "a: 1\n", PROVENANCE, resume=True)
    told = r"Read-only file system; make it writable, then start again"
    with pytest.raises(RunError, match=told):
        write_json(run.path / "x.json", 2)
    with pytest.raises(RunError, match=told), staged_folder(run.path / "y"):
        pass
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    with RunFolder.open(run.path, "a: 1\n", PROVENANCE, resume=True):
        assert read_json(run.path / "x.json") == 1


def test_lost_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected: permissions do not bind root."""
    with RunFolder.open(tmp_path / "run", "", PROVENANCE, resume=False) as run:

        def refuse(*_: object, **__: object) -> NoReturn:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(os, "open", refuse)
        told = r"Permission denied; make it writable, then start again"
        with pytest.raises(RunError, match=told):
            run.log({})
        with pytest.raises(RunError, match=told):
            write_json(run.path / "x.json", 1)
        monkeypatch.undo()
        assert sorted(p.name for p in run.path.iterdir()) == ["recipe.yaml", "run.json", "run.lock"]


def test_a_damaged_line_of_metrics_is_named(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "", PROVENANCE, resume=False) as run:
        run.log({"phase": "sft", "step": 1})
        for line in (
            b"{",
            b"\xff",
            b"[]",
            b"null",
            b'{"phase": "sft"}',
            b'{"phase": 1, "step": ""}',
        ):
            run.metrics_path.write_bytes(run.metrics_path.read_bytes()[:29] + line + b"\n")
            with pytest.raises(RunError, match=r"metrics\.jsonl:2: damaged; delete this line"):
                run.metrics()
