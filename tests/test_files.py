"""Files: nothing half-written under its own name, damage noticed, failures named in one line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from forty2.errors import RunError
from forty2.files import (
    LFS_POINTER,
    JsonObject,
    atomic_write,
    check_free_space,
    close_name,
    find_damage,
    is_lfs_pointer,
    is_number,
    make_folder,
    not_readable,
    owner_only,
    read_json,
    read_sealed,
    refuse_links,
    remove_leftovers,
    seal,
    staged_folder,
    write_bytes,
    write_errors,
    write_json,
    write_sealed,
    write_text,
)

ENDED = 4194305
"""A process number above Linux's largest."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


# --- writing --------------------------------------------------------------------------------------


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "é old")
    with atomic_write(path) as file:
        file.write(b"new, but ")
        assert path.read_text("utf-8") == "é old"
        file.write(b"not yet")
    assert path.read_bytes() == b"new, but not yet" and names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("path", [".", "/", "", "folder", "pipe", "link"])
def test_what_is_no_file_is_not_replaced_by_one(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    with pytest.raises(RunError, match=r"is a (folder|device or a pipe); name a file"):
        write_text(Path(path), "new")
    assert names(tmp_path) == ["folder", "link", "pipe"] and Path("pipe").is_fifo()


@pytest.mark.parametrize("path", [".", "/", "", "file"])
def test_what_is_no_folder_is_not_replaced_by_one(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("old")
    with pytest.raises(RunError, match=r"name a (new )?folder"), staged_folder(Path(path)):
        raise AssertionError
    assert names(tmp_path) == ["file"] and Path("file").read_text() == "old"


def test_json_is_written_to_be_read_by_people_too(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"é": [1]})
    assert (tmp_path / "file.json").read_text("utf-8") == '{\n "é": [\n  1\n ]\n}\n'


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    with pytest.raises(RuntimeError, match="for another reason"), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError("for another reason")
    assert read_json(path) == {"a": 1} and names(tmp_path) == ["file.json"]


def test_a_folder_takes_its_name_only_when_complete(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out") as folder:
        write_bytes(folder / "a", b"1")
        assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "out") as folder:
        write_bytes(folder / "b", b"2")
        raise RuntimeError
    assert names(tmp_path / "out") == ["a"] and names(tmp_path) == ["out"]


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with staged_folder(tmp_path / "out") as folder:
            write_bytes(folder / name, b"1")
    assert names(tmp_path / "out") == ["b"] and names(tmp_path) == ["out"]


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power a name may lead to a file that was never flushed, so the order counts."""
    events: list[tuple[str, str, int]] = []
    flush, rename = os.fsync, os.replace

    def traced_flush(opened: int) -> None:
        flush(opened)
        path = Path(os.readlink(f"/proc/self/fd/{opened}"))
        events.append(("flush", path.name, os.fstat(opened).st_size if path.is_file() else 0))

    def traced_rename(old: Path, new: Path) -> None:
        rename(old, new)
        events.append(("rename", f"{old.name} {new.name}", 0))

    monkeypatch.setattr(os, "fsync", traced_flush)
    monkeypatch.setattr(os, "replace", traced_rename)
    unfinished = f".out.{os.getpid()}"
    write_bytes(tmp_path / "out", b"12345")
    named = [("rename", f"{unfinished} out", 0), ("flush", tmp_path.name, 0)]
    assert events == [("flush", unfinished, 5), *named]
    (tmp_path / "out").unlink()
    events.clear()
    with staged_folder(tmp_path / "out") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"1234567")
        assert not events
    assert sorted(events[:3]) == [
        ("flush", unfinished, 0),
        ("flush", "inner", 0),
        ("flush", "weights", 7),
    ]
    assert events[3:] == named


@pytest.mark.usefixtures("common_umask")
def test_new_files_and_folders_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "deeper" / "file", "1")
    make_folder(tmp_path / "made" / "too")
    with staged_folder(tmp_path / "set") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"written by mlx, which knows no permissions")
    for path in tmp_path.rglob("*"):
        assert permissions(path) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.usefixtures("common_umask")
def test_a_file_is_its_owners_from_the_moment_that_it_is_opened(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w", opener=owner_only):
        assert permissions(tmp_path / "log") == 0o600


def test_a_folder_that_another_process_makes_first_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may appear between the look for it and its making."""
    (tmp_path / "made").mkdir()
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "made")
    make_folder(tmp_path / "made")


@pytest.mark.usefixtures("common_umask")
def test_a_replaced_file_or_folder_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    write_text(tmp_path / "report.html", "new")
    assert permissions(tmp_path / "report.html") == 0o644
    (tmp_path / "set").mkdir()
    with staged_folder(tmp_path / "set") as folder:
        write_bytes(folder / "rows", b"2")
    assert permissions(tmp_path / "set") == 0o755
    assert permissions(tmp_path / "set" / "rows") == 0o644


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"x\.json: not readable as JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(RunError, match=r"y\.json: no such file"):
        read_json(tmp_path / "y.json")


def test_a_missing_file_has_a_neighbour_with_almost_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train.jsonl", "notes"):
        (tmp_path / name).touch()
    said = f"; did you mean {tmp_path / 'train.jsonl'}?"
    assert close_name(tmp_path / "trian.jsonl") == close_name(tmp_path / "train.json") == said
    for name in ("eval.json", "train.jsonl", "absent/train.jsonl"):  # or it is no other file's
        assert close_name(tmp_path / name) == ""
    monkeypatch.chdir(tmp_path)
    assert close_name(Path("trian.jsonl")) == "; did you mean train.jsonl?"


def test_a_file_that_git_lfs_left_out_is_known_by_its_beginning(tmp_path: Path) -> None:
    contents = {"pointer": LFS_POINTER + b"/v1\noid 1", "other": b"v" + LFS_POINTER, "empty": b""}
    for name, content in contents.items():
        write_bytes(tmp_path / name, content)
    found = [name for name in (*contents, "absent", ".") if is_lfs_pointer(tmp_path / name)]
    assert found == ["pointer"]


# --- leftovers ------------------------------------------------------------------------------------


def test_leftovers_of_ended_processes_go_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    for name in (f".out.{ENDED}", f".out.{ENDED}.old", ".out.1", f".other.{ENDED}"):
        (tmp_path / name).mkdir()
    with staged_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [f".other.{ENDED}", ".out.1", "out"]


def test_another_process_that_writes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as writer:
        unfinished = tmp_path / f".out.{writer.pid}"
        unfinished.mkdir()
        remove_leftovers(tmp_path)
        assert unfinished.exists()
        writer.communicate(b"\n")
        assert writer.returncode == 0  # no signal ended it

    def refuse(*_: int) -> NoReturn:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "kill", refuse)  # a process of another user
    remove_leftovers(tmp_path)
    assert unfinished.exists()


def test_a_folder_moved_away_for_one_that_never_came_returns(tmp_path: Path) -> None:
    """A process may be killed between moving the old folder away and naming the new one."""
    for name in (f".model.{ENDED}.old", f".model.{ENDED}", f".other.{ENDED}.old", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["model", "other"]
    assert (tmp_path / "model" / "which").read_text() == f".model.{ENDED}.old"
    assert (tmp_path / "other" / "which").read_text() == "other"


def test_a_leftover_that_cannot_be_removed_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may be removing it at the same moment."""

    def gone(*_: object, **more: object) -> None:
        raise FileNotFoundError

    (tmp_path / ".set.4194305").mkdir()
    monkeypatch.setattr(os, "rmdir", gone)
    remove_leftovers(tmp_path)


def test_a_leftover_that_another_process_removed_first_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leftover = tmp_path / f".out.{ENDED}"
    monkeypatch.setattr(Path, "iterdir", lambda _: iter([leftover]))
    remove_leftovers(tmp_path)
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (LFS_POINTER, "is a pointer of Git LFS, not the file; run `git lfs pull`"),
        (b" \n<!DOCTYPE html>", "is a web page (HTML); download the file itself"),
        (b"{", "not readable: two lines"),
    ],
)
def test_what_a_file_holds_instead_is_said(content: bytes, says: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    assert not_readable(file, ValueError("two\nlines")) == f"{file}: {says}"


def test_links_among_leftovers_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f".out.{ENDED}").symlink_to(outside)
    (folder / f".thesis.{ENDED}").symlink_to(outside / "thesis.txt")
    remove_leftovers(folder)
    assert names(folder) == [] and (outside / "thesis.txt").read_text() == "precious"


def test_a_link_out_of_a_run_is_refused_and_one_inside_is_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "work").mkdir(parents=True)
    (run / "inside").symlink_to(run / "work")
    refuse_links(run)
    (run / "work" / "out").symlink_to(tmp_path)
    with pytest.raises(RunError, match=rf"^{run / 'work' / 'out'}: is a link that leads out"):
        refuse_links(run)


# --- what stops a write ---------------------------------------------------------------------------


def test_a_disk_too_full_is_found_before_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=5_000_000_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check_free_space({tmp_path / "run" / "work": 3_000_000_000, tmp_path / "fused": 2_000_000_000})
    assert asked == [tmp_path, tmp_path]  # what is there already tells the disk
    with pytest.raises(RunError, match=r"fused: about 5.10 GB .* 5.00 GB are free; make room"):
        check_free_space(
            {tmp_path / "run" / "work": 3_000_000_000, tmp_path / "fused": 2_100_000_000}
        )


def test_a_full_disk_is_named_and_the_old_content_stays(small_disk: Path) -> None:
    def write_file(size: int) -> None:
        write_bytes(small_disk / "file", b"1" * size)

    def write_folder(size: int) -> None:
        with staged_folder(small_disk / "set") as folder:
            (folder / "rows").write_bytes(b"1" * size)

    for path, write in (("file", write_file), ("set/rows", write_folder)):
        write(60_000)
        with pytest.raises(RunError, match="the disk is full; make room"):
            write(250_000)
        assert (small_disk / path).stat().st_size == 60_000
    assert names(small_disk) == ["file", "set"]


def test_a_read_only_disk_is_named_and_the_old_content_stays(small_disk: Path) -> None:
    write_json(small_disk / "x.json", 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    message = r"Read-only file system; make it writable, then start again"
    with pytest.raises(RunError, match=message):
        write_json(small_disk / "x.json", 2)
    with pytest.raises(RunError, match=message), staged_folder(small_disk / "y"):
        pass
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert read_json(small_disk / "x.json") == 1


def test_lost_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Injected, because permissions do not bind root."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RunError, match=r"x\.json: .*Permission denied; make it writable"):
        write_json(tmp_path / "x.json", 1)
    monkeypatch.undo()
    assert names(tmp_path) == []


def test_a_failure_of_mlx_to_write_is_named_and_its_other_errors_pass(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match=r"out: cannot be written: \[write\] .*make room"),
        write_errors(tmp_path / "out"),
    ):
        raise RuntimeError("[write] Unable to write 8 bytes to file.")
    with pytest.raises(RuntimeError, match=r"^\[matmul\]"), write_errors(tmp_path / "out"):
        raise RuntimeError("[matmul] shapes do not fit")


# --- checksums ------------------------------------------------------------------------------------


def test_a_sealed_folder_shows_every_change(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"12")
    seal(tmp_path)
    (tmp_path / ".DS_Store").touch()
    assert find_damage(tmp_path) is None
    write_bytes(tmp_path / "b", b"")
    assert find_damage(tmp_path) == f"{tmp_path / 'b'} does not belong there"
    (tmp_path / "b").unlink()
    checksums = (tmp_path / "SHA256SUMS").read_bytes()
    for at in range(len(checksums)):
        for bit in (1, 32):
            changed = checksums[:at] + bytes([checksums[at] ^ bit]) + checksums[at + 1 :]
            (tmp_path / "SHA256SUMS").write_bytes(changed)
            assert find_damage(tmp_path) is not None, at
    damaged = f"{tmp_path / 'SHA256SUMS'} is damaged"
    (tmp_path / "SHA256SUMS").write_bytes(checksums + b"more")
    assert find_damage(tmp_path) == damaged
    (tmp_path / "SHA256SUMS").write_bytes(b"")
    assert find_damage(tmp_path) is not None
    (tmp_path / "a").unlink()
    assert find_damage(tmp_path) == damaged
    (tmp_path / "SHA256SUMS").unlink()
    assert find_damage(tmp_path) == f"{tmp_path / 'SHA256SUMS'} is missing"


def test_a_file_of_any_name_is_sealed(tmp_path: Path) -> None:
    for name in ("two  spaces", " before", "after ", "é"):
        write_bytes(tmp_path / name, b"12")
    seal(tmp_path)
    assert find_damage(tmp_path) is None
    write_bytes(tmp_path / "two  spaces", b"13")
    assert find_damage(tmp_path) == f"{tmp_path / 'two  spaces'} is damaged"


def test_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"12")
    seal(tmp_path)
    digest = "6b51d431df5d7f141cbececcf79edf3dd861c3b4069f0b11661a3eefacbba918"
    assert (tmp_path / "SHA256SUMS").read_text() == f"{digest}  a\n"


def test_checksums_of_a_file_elsewhere_are_damage(tmp_path: Path) -> None:
    seal(tmp_path)
    for name in ("/etc/passwd", "../x", "a/b", ""):
        (tmp_path / "SHA256SUMS").write_text(f"0  {name}\n")
        assert find_damage(tmp_path) == f"{tmp_path / 'SHA256SUMS'} is damaged"


def test_a_sealed_file_shows_every_change(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    result: JsonObject = {"score": 0.1, "items": [{"é": None}], "n": 3}
    write_sealed(path, result)
    assert read_sealed(path) == result
    for old, new in (
        ("0.1", "0.2"),
        ("0.1", "NaN"),
        ("null", "true"),
        ('"n": 3', '"n": 4'),
        ('"sha256"', '"s"'),
    ):
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(RunError, match=r"base\.json: damaged; delete it, then go on"):
            read_sealed(path)
        write_sealed(path, result)
    path.write_text("[]")
    with pytest.raises(RunError, match="damaged"):
        read_sealed(path)


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        (0, True),
        (-1.5, True),
        (10**308, True),
        (10**309, False),
        (-(10**400), False),
        (float("nan"), False),
        (float("inf"), False),
        (True, False),
        ("1", False),
        (None, False),
    ],
)
def test_a_number_is_one_that_a_float_holds(value: object, is_one: bool) -> None:
    assert is_number(value) is is_one
