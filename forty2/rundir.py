"""A run directory: everything that a run writes, in files that are never seen half-written.

RUN/recipe.yaml            the resolved recipe, every default spelled out
RUN/run.json               provenance: versions, device, hashes, when and how it was started
RUN/metrics.jsonl          one line per step and evaluation
RUN/data/NAME/             built-in data sets as they were built for this run
RUN/phase1_sft/            the adapter after the phase, in stock mlx-lm format, and phase.json
RUN/work/                  checkpoints and reference log-probabilities of unfinished work
RUN/benchmarks/            results after the base, each phase and fusing
RUN/report.md, report.html
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from forty2.errors import RunError

VERSION = 1


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file to fill that a reader sees whole or not at all: the old one until the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}") from error
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
    """A folder to fill that takes its name, replacing an older one, only when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for file in aside.rglob("*"):
            if file.is_file():
                _sync_file(file)
        if folder.exists():
            shutil.rmtree(folder)
        aside.replace(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
        if not existing and path.is_dir() and any(p.name != "run.lock" for p in path.iterdir()):
            raise RunError(f"{path}: is not empty and holds no run; name another --run-dir")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / "run.lock").open("a+")
        except OSError as error:
            raise RunError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise RunError(f"{path}: in use by {owner}") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} since {now()}")
        lock.flush()
        run = cls(path, lock)
        try:
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
        """Append one whole line to the metrics."""
        line = json.dumps(record, allow_nan=False) + "\n"
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(line)

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


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
