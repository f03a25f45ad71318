"""Safe writes of files and folders: atomic, with checksums, refused links and a check of free space."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeGuard

from forty2.errors import RunError, on_one_line

JsonObject = dict[str, Any]
"""A parsed JSON object whose keys have not been checked."""
CHECKSUMS = "SHA256SUMS"
"""Name of the file in a sealed folder that holds the checksums of the others."""
CARD = "README.md"
"""Name of the file that describes a model to people. It is written anew when more is known about the
model, and its owner may edit it: no checksum is kept of it."""
_UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)(?P<replaced>\.old)?")
"""Name of a file or folder while a process writes it: `.NAME.PROCESS`. The folder that it replaces
is `.NAME.PROCESS.old` for the moment between the two renames."""


# --- writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that gets its name only when it is complete and on the disk.

    A reader sees the old file or the new one, never a part. New files are readable by their owner
    only; a replaced file keeps its permissions. Missing folders are made.

    Raises:
        RunError: the file cannot be written; the old one stays.
    """
    with write_errors(path):
        refuse_no_file(path)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        make_folder(path.parent)
        remove_leftovers(path.parent, path.name)
        permissions = _permissions(path, new=0o600)
        try:
            with open(unfinished, "xb", opener=owner_only) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            unfinished.chmod(permissions)
            unfinished.replace(path)
            _flush_to_disk(path.parent)
        finally:
            unfinished.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file with `atomic_write`."""
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8 with `atomic_write`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write JSON with `atomic_write`.

    Raises:
        ValueError: it holds NaN or an infinity, which JSON cannot express; the old file stays.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)\b", re.IGNORECASE)
"""Beginning of a web page, such as a browser saves in place of a file."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""Beginning of what Git LFS leaves in place of a large file that it did not fetch."""


def is_lfs_pointer(path: Path) -> bool:
    """Return whether Git LFS has not fetched a file, but left a pointer in its place."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def not_readable(path: Path, error: BaseException) -> str:
    """Say why a JSON file cannot be read, by what it holds instead where that is known."""
    if is_lfs_pointer(path):
        return f"{path}: is a pointer of Git LFS, not the file; run `git lfs pull`"
    with contextlib.suppress(OSError), path.open("rb") as file:
        if WEB_PAGE.match(file.read(64)):
            return f"{path}: is a web page (HTML); download the file itself"
    return f"{path}: not readable: {on_one_line(error)}"


def close_name(path: Path) -> str:
    """Return words that name a file beside a missing one with almost its name; none: an empty text."""
    try:
        names = [p.name for p in path.absolute().parent.iterdir() if p.name != path.name]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, 1, cutoff=0.7)
    return f"; did you mean {path.with_name(close[0])}?" if close else ""


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


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value of a parsed file is a number that a float can hold, and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of 310 digits
        return False


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Make a folder to fill, which gets its name only when it is complete and on the disk.

    It replaces an older folder of that name, which stays whole until then. New folders are readable
    by their owner only; a replaced folder keeps its permissions.

    Yields:
        The folder to fill, beside its final place.

    Raises:
        RunError: it cannot be written; the old folder stays.
    """
    with write_errors(folder):
        refuse_no_folder(folder)
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
        replaced = unfinished.with_name(f"{unfinished.name}.old")
        make_folder(folder.parent)
        remove_leftovers(folder.parent, folder.name)
        permissions = _permissions(folder, new=0o700)
        try:  # begins before the folder exists: a signal may come between any two lines
            unfinished.mkdir(mode=0o700)
            yield unfinished
            for path in (*unfinished.rglob("*"), unfinished):
                path.chmod(permissions if path.is_dir() else permissions & 0o666)
                _flush_to_disk(path)
            if folder.exists():
                folder.replace(replaced)
            try:
                unfinished.replace(folder)
            except BaseException:
                if replaced.exists():
                    replaced.replace(folder)
                raise
            _flush_to_disk(folder.parent)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            if folder.exists():
                shutil.rmtree(replaced, ignore_errors=True)


def refuse_no_file(path: Path) -> None:
    """Refuse to replace what is no file: a folder, or a device or pipe such as /dev/null.

    Raises:
        RunError: naming it.
    """
    if path.is_dir():
        raise RunError(f"{path}: is a folder; name a file to write")
    if path.exists() and not path.is_file():
        raise RunError(f"{path}: is a device or a pipe; name a file to write")


def refuse_no_folder(folder: Path) -> None:
    """Refuse to replace a file by a folder, and `.`, `..` and `/`, beside which no other can be made.

    Raises:
        RunError: naming it.
    """
    if folder.name in ("", ".."):
        raise RunError(f"{folder}: cannot be replaced as a whole; name a new folder in it")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; name a folder to write")


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make a folder if it is missing, and wait until no other process or thread holds its lock.

    A process that ends frees it.
    """
    make_folder(folder)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, readable by their owner only."""
    for missing in reversed([p for p in (folder, *folder.parents) if not p.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def owner_only(path: str, flags: int) -> int:
    """Open a file: the `opener` of `open()` for files that only their owner may read.

    A symbolic link in its place is refused, not followed.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the unfinished files and folders of processes that have ended.

    If such a process had moved a folder aside and never replaced it, the folder is moved back.

    Args:
        name: the file or folder that was being written; None: any.
    """
    for path in list(folder.iterdir()):
        found = _UNFINISHED.fullmatch(path.name)
        if not found or name not in (None, found["name"]) or _is_running(int(found["process"])):
            continue
        if found["replaced"] and not (folder / found["name"]).exists():
            path.replace(folder / found["name"])
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Return whether another process of this number is alive."""
    if process == os.getpid():
        return False  # this process has not written yet: an ended one had the same number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _permissions(path: Path, *, new: int) -> int:
    """Return the permission bits of a file or folder to be replaced; `new` if there is none."""
    return new if path.is_symlink() or not path.exists() else path.stat().st_mode & 0o777


def _flush_to_disk(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


# --- errors of writing ----------------------------------------------------------------------------


def check_free_space(sizes: Mapping[Path, int]) -> None:
    """Refuse to begin a write that needs more space than a disk has free.

    Args:
        sizes: bytes to be written, by the file or folder that will hold them.

    Raises:
        RunError: a disk has less free space than all paths on it need together.
    """
    needed: dict[int, int] = {}
    for path, size in sizes.items():
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
        disk = existing.stat().st_dev
        needed[disk] = needed.get(disk, 0) + size
        free = shutil.disk_usage(existing).free
        if needed[disk] > free:
            raise RunError(
                f"{path}: about {needed[disk] / 1e9:.2f} GB will be needed here and "
                f"{free / 1e9:.2f} GB are free; make room, then start again with `resume=True`"
            )


def refuse_links(run: Path) -> None:
    """Refuse a folder in which a link leads outside: a run must not write files outside its folder.

    Raises:
        RunError: naming the link.
    """
    inside = run.resolve()
    for path in run.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise RunError(
                f"{path}: is a link that leads out of the run folder, and such links are not "
                "followed; replace it by the file or folder itself, or name another `run_dir`"
            )


_REMEDIES = {
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EROFS: "make it writable",
    errno.ENOENT: "put the folder back",
    errno.ESTALE: "put the folder back",
}
"""Advice to the user, by the system's error number."""


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the system's and mlx's errors during a write into one line with what to do.

    Raises:
        RunError: something in the block could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"{path}: cannot be written: the disk is full; make room, then start again with `resume=True`"
            ) from error
        remedy = _REMEDIES.get(error.errno or 0)
        advice = f"; {remedy}, then start again with `resume=True`" if remedy else ""
        raise RunError(f"{path}: cannot be written: {error.strerror or error}{advice}") from error
    except RuntimeError as error:
        if not str(error).startswith(("[write]", "[save_safetensors]")):  # mlx's, without a reason
            raise
        raise RunError(
            f"{path}: cannot be written: {error}; make room on the disk, then start again with `resume=True`"
        ) from error


# --- checksums ------------------------------------------------------------------------------------


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files into it, as `sha256sum --check` reads them."""
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in sorted(_files_to_seal(folder))]
    write_text(folder / CHECKSUMS, "".join(lines))


def find_damage(folder: Path) -> str | None:
    """Compare a sealed folder with its checksums.

    Returns:
        A few words that name the first file that is missing, damaged or added; None: there is none.
    """
    try:
        *lines, end = (folder / CHECKSUMS).read_bytes().decode().split("\n")
        checksums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        if any(not name or Path(name).name != name for name in checksums):
            raise ValueError
        present = _files_to_seal(folder)
        for name in sorted((present | checksums.keys()) - {CARD}):  # earlier releases sealed it
            if name not in present:
                return f"{folder / name} is missing"
            if name not in checksums:
                return f"{folder / name} does not belong there"
            if file_sha256(folder / name) != checksums[name]:
                return f"{folder / name} is damaged"
    except FileNotFoundError:
        return f"{folder / CHECKSUMS} is missing"
    except (OSError, ValueError):
        return f"{folder / CHECKSUMS} is damaged"
    return f"{folder / CHECKSUMS} is damaged" if end or not checksums else None


def _files_to_seal(folder: Path) -> set[str]:
    """Return the names of a folder's files that have checksums. File browsers add hidden ones."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return names - {CHECKSUMS, CARD}


def write_sealed(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON object with `atomic_write`, and add its checksum as the last key."""
    write_json(path, {**value, "sha256": _json_sha256(value)})


def read_sealed(path: Path) -> JsonObject:
    """Read a file that `write_sealed` wrote, and return the object without its checksum.

    Raises:
        RunError: it is missing or damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.pop("sha256", None) != _json_sha256(value):
        raise RunError(
            f"{path}: damaged; delete it, then go on with `resume=True`, which makes it again"
        )
    return value


def _json_sha256(value: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
