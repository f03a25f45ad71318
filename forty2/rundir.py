"""A run directory: everything that a run writes, in files that are never seen half-written.

RUN/recipe.yaml            the resolved recipe, every default spelled out
RUN/run.json               provenance: versions, device, hashes, when and how it was started
RUN/metrics.jsonl          one line per step and evaluation
RUN/data/NAME/             built-in data sets as they were built for this run
RUN/phase1_sft/            the adapter after the phase, in stock mlx-lm format, and phase.json
RUN/work/PHASE/stepN/      the two newest checkpoints of an unfinished phase, with their checksums
RUN/benchmarks/            results after the base, each phase and fusing
RUN/report.md, report.html
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from forty2.errors import RunError

VERSION = 1
SUMS = "SHA256SUMS"
_ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)(\.old)?")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file to fill that a reader sees whole or not at all: the old one until the end."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with _refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, path.name)
        try:
            with aside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            _sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    with writing(path) as file:
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
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: not readable as JSON: {error}") from error


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to fill that takes its name, replacing an older one, only when it is whole.

    An older one is never seen in part: it is there, or moved away whole.
    """
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    old = aside.with_name(f"{aside.name}.old")
    with _refusals(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep(folder.parent, folder.name)
        aside.mkdir()
        try:
            yield aside
            for path in (*aside.rglob("*"), aside):
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


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what ended processes left half-written in a folder, for one name or for all."""
    for path in folder.iterdir():
        found = _ASIDE.fullmatch(path.name)
        if not found or name not in (None, found["name"]) or _is_at_work(int(found["process"])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_room(needs: Mapping[Path, int]) -> None:
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
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    write_text(folder / SUMS, "".join(f"{_sha256(path)}  {path.name}\n" for path in files))


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in a few words with its path; None if nothing is."""
    try:
        *lines, end = (folder / SUMS).read_bytes().decode().split("\n")
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        present = {path.name for path in folder.iterdir()} - {SUMS}
        for name in sorted(present | sums.keys()):
            if name not in present:
                return f"{folder / name} is missing"
            if name not in sums or _sha256(folder / name) != sums[name]:
                return f"{folder / name} is damaged"
    except FileNotFoundError:
        return f"{folder / SUMS} is missing"
    except (OSError, ValueError):
        return f"{folder / SUMS} is damaged"
    return f"{folder / SUMS} is damaged" if end or not sums else None


class RunDir:
    """An open run directory, locked against a second writer until closed."""

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(
        cls, path: Path, recipe_yaml: str, provenance: Mapping[str, Any], *, resume: bool
    ) -> RunDir:
        """Start a run in a new or empty folder, or go on with the one that is there.

        Raises:
            RunError: the folder holds a run and `resume` is off, another process has it,
                or the run there was started from another recipe.
        """
        existing = (path / "run.json").exists()
        if existing and not resume:
            raise RunError(
                f"{path}: holds a run already; go on with --resume, or name another --run-dir"
            )
        if not existing and path.is_dir() and any(map(_is_foreign, path.iterdir())):
            raise RunError(f"{path}: is not empty and holds no run; name another --run-dir")
        with _refusals(path):
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / "run.lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise RunError(f"{path}: in use by {owner}") from error
        run = cls(path, lock)
        try:
            with _refusals(path):
                lock.truncate(0)
                lock.write(f"process {os.getpid()} since {now()}")
                lock.flush()
                sweep(path)
            if existing:
                run._check_recipe(recipe_yaml)
            else:
                write_text(path / "recipe.yaml", recipe_yaml)
                write_json(path / "run.json", {"version": VERSION, "started": now(), **provenance})
        except BaseException:
            lock.close()
            raise
        return run

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def _check_recipe(self, recipe_yaml: str) -> None:
        record = read_json(self.path / "run.json")
        if record.get("version") != VERSION:
            raise RunError(
                f"{self.path}: written by another release (format {record.get('version')}, "
                f"this one reads {VERSION}); start a new run"
            )
        started_with = (self.path / "recipe.yaml").read_text("utf-8")
        if started_with != recipe_yaml:
            old, new = started_with.splitlines(), recipe_yaml.splitlines()
            changed = next(
                (n for n in new if n not in old), next((o for o in old if o not in new), "")
            )
            raise RunError(
                f"{self.path}: was started from another recipe (first difference: "
                f"{changed.strip()!r}); resume with that one, or name another --run-dir"
            )

    # --- metrics ---

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one whole line to the metrics, in one write."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with _refusals(self.metrics_path), self.metrics_path.open("ab") as file:
            file.write(line.encode())

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of the metrics so far."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text("utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def forget_metrics_after(self, phase: str, step: int) -> None:
        """Drop what a phase logged beyond a checkpoint that it now goes on from."""
        kept = [r for r in self.metrics() if r["phase"] != phase or r["step"] <= step]
        write_text(self.metrics_path, "".join(json.dumps(r, allow_nan=False) + "\n" for r in kept))


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _is_foreign(path: Path) -> bool:
    """Whether an entry of a folder without run.json is not what a run that was just begun left."""
    return path.name not in ("run.lock", "recipe.yaml") and not _ASIDE.fullmatch(path.name)


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


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn what the system says while something is written into one line with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"{path}: cannot be written: the disk is full; make room, then go on with --resume"
            ) from error
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
    except RuntimeError as error:
        if not str(error).startswith(("[write]", "[save_safetensors]")):  # mlx's, without a reason
            raise
        raise RunError(
            f"{path}: cannot be written: {error}; make room on the disk, then go on with --resume"
        ) from error


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
