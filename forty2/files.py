"""Files that are never seen half-written: atomic writes, sealed folders, links refused, room checked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from forty2.errors import RunError

JsonObject = dict[str, Any]
"""A parsed JSON object of which nothing more is known."""
SUMS = "SHA256SUMS"
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)(?P<old>\.old)?")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file to fill that a reader sees whole or not at all: the old one until the end."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with write_errors(path):
        make_folder(path.parent)
        remove_leftovers(path.parent, path.name)
        mode = _mode(path, 0o600)
        try:
            with open(aside, "xb", opener=owner_only) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.chmod(mode)
            aside.replace(path)
            _sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for JSON. NaN and infinities are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: not readable as JSON: {error}") from error


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes its name, replacing an older one, only when it is whole.

    An older one is never seen in part: it is there, or moved away whole.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = aside.with_name(f"{aside.name}.old")
    with write_errors(folder):
        make_folder(folder.parent)
        remove_leftovers(folder.parent, folder.name)
        mode = _mode(folder, 0o700)
        try:  # from before the folder is there: a signal may come between any two lines
            aside.mkdir(mode=0o700)
            yield aside
            for path in (*aside.rglob("*"), aside):
                path.chmod(mode if path.is_dir() else mode & 0o666)
                _sync(path)
            if folder.exists():
                folder.replace(old)
            try:
                aside.replace(folder)
            except BaseException:
                if old.exists():
                    old.replace(folder)
                raise
            _sync(folder.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner alone."""
    for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def owner_only(path: str, flags: int) -> int:
    """An opener: a new file is for its owner alone, and a link in its place is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what ended processes left half-written in a folder, for one name or for all.

    What was moved away for something new that never came goes back to its place.
    """
    for path in list(folder.iterdir()):
        found = _ASIDE.fullmatch(path.name)
        if not found or name not in (None, found["name"]) or _is_at_work(int(found["process"])):
            continue
        if found["old"] and not (folder / found["name"]).exists():
            path.replace(folder / found["name"])
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_free_space(needs: Mapping[Path, int]) -> None:
    """Refuse what would not fit: bytes to be written by the path that they go to.

    Raises:
        RunError: a disk has less than what all its paths need.
    """
    disks: dict[int, int] = {}
    for path, size in needs.items():
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        device = there.stat().st_dev
        disks[device] = disks.get(device, 0) + size
        free = shutil.disk_usage(there).free
        if disks[device] > free:
            raise RunError(
                f"{path}: about {disks[device] / 1e9:.2f} GB will be needed here and "
                f"{free / 1e9:.2f} GB are free; make room, then go on with --resume"
            )


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files into it, as `sha256sum --check` reads them."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(_names(folder))]
    write_text(folder / SUMS, "".join(lines))


def find_damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words with its path; None if nothing is."""
    try:
        *lines, end = (folder / SUMS).read_bytes().decode().split("\n")
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        if any(not name or Path(name).name != name for name in sums):
            raise ValueError
        present = _names(folder)
        for name in sorted(present | sums.keys()):
            if name not in present:
                return f"{folder / name} is missing"
            if name not in sums:
                return f"{folder / name} does not belong there"
            if _sha256(folder / name) != sums[name]:
                return f"{folder / name} is damaged"
    except FileNotFoundError:
        return f"{folder / SUMS} is missing"
    except (OSError, ValueError):
        return f"{folder / SUMS} is damaged"
    return f"{folder / SUMS} is damaged" if end or not sums else None


def _names(folder: Path) -> set[str]:
    """Of the files that are sealed; a file browser puts hidden ones beside them."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {SUMS}


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """`write_json` with the checksum of all the rest as the last key."""
    write_json(path, {**value, "sha256": _digest(value)})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote, without the checksum.

    Raises:
        RunError: it is missing or damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.pop("sha256", None) != _digest(value):
        raise RunError(f"{path}: damaged; delete it, then go on with --resume: it is made anew")
    return value


def _mode(path: Path, new: int) -> int:
    """The permissions of what is to be replaced; `new` where nothing is."""
    return new if path.is_symlink() or not path.exists() else path.stat().st_mode & 0o777


def refuse_links(run: Path) -> None:
    """Refuse a run in which something is a link to a place outside: what is there is not the run's.

    Raises:
        RunError: naming the link.
    """
    inside = run.resolve()
    for path in run.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise RunError(
                f"{path}: is a link that leads out of the run, which is not followed; put what it "
                "stands for in its place, or name another --run-dir"
            )


def _is_at_work(process: int) -> bool:
    if process == os.getpid():
        return False  # one writer a name: what is there is from an ended one of the same number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


_REMEDIES = {
    number: f"; {remedy}, then go on with --resume"
    for remedy, numbers in {
        "make it writable": (errno.EACCES, errno.EPERM, errno.EROFS),
        "put the folder back": (errno.ENOENT, errno.ESTALE),
    }.items()
    for number in numbers
}


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what the system says while something is written into one line with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"{path}: cannot be written: the disk is full; make room, then go on with --resume"
            ) from error
        remedy = _REMEDIES.get(error.errno or 0, "")
        raise RunError(f"{path}: cannot be written: {error.strerror or error}{remedy}") from error
    except RuntimeError as error:
        if not str(error).startswith(("[write]", "[save_safetensors]")):  # mlx's, without a reason
            raise
        raise RunError(
            f"{path}: cannot be written: {error}; make room on the disk, then go on with --resume"
        ) from error


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, allow_nan=False).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have a file or the entries of a folder on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
