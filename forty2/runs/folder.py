"""The run folder: everything that a run writes, in files that are never seen half-written.

RUN/recipe.yaml            the resolved recipe, every default spelled out
RUN/run.json               provenance: versions, device, hashes, when the run was started
RUN/template.json          settings of the chat template, and the day that it takes for today
RUN/metrics.jsonl          one line per step and evaluation
RUN/times.jsonl            one line per stretch of work on a stage, with its seconds
RUN/data.json              hashes of the rows of each phase
RUN/lint.json              warnings of the lint about the rows of each phase
RUN/gates.json             the gates of each finished phase that has any, with what passed
RUN/data/NAME/             built-in data sets as they were built for this run
RUN/phase1_sft/            the adapter after the phase, in stock mlx-lm format, phase.json, checksums
RUN/work/PHASE/stepN/      the two newest checkpoints of an unfinished phase, with their checksums;
                           of a finished one, the last from which it can be extended
RUN/benchmarks/            results after the base, each phase and fusing, with a checksum in each
RUN/report.md, report.html
RUN/failed.json            the error that ended the run, until it goes on
RUN/tensorboard, RUN/wandb files of trackers, if the recipe has report_to; see `runs.trackers`
RUN/notes.json             notes and tags of the user's; see `runs.archive.notes`

New files are readable by their owner only; a replaced file keeps its permissions.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from forty2.errors import Interrupted, OtherProcessEnded, RunError, first_line, redact
from forty2.files import (
    JsonObject,
    make_folder,
    owner_only,
    read_json,
    refuse_links,
    remove_leftovers,
    seal,
    write_bytes,
    write_errors,
    write_json,
    write_sealed,
    write_text,
)
from forty2.report.records import TIMES
from forty2.run_paths import finished_phases
from forty2.runs.archive.entry import FAILED
from forty2.runs.extending import (
    JOURNAL,
    complete_extension,
    differs_in_reporting_alone,
    extend,
    find_extension,
)
from forty2.runs.records import Provenance

VERSION = 2
"""Version of the run folder's format. 1: finished phases without checksums, one `best` a phase."""
_RESULTS = ("phase*", "work/*", "benchmarks/*", "metrics.jsonl", JOURNAL)


class RunFolder:
    """An open run folder, locked against a second writer until closed."""

    def __init__(self, path: Path, lock: IO[str], notice: str | None = None) -> None:
        self.path = path
        self.notice = notice
        """Sentence about what opening it has changed."""
        self._lock = lock
        self.on_change: Callable[[], None] | None = None
        """Function called when the metrics have changed."""

    @classmethod
    def open(
        cls,
        path: Path,
        recipe_yaml: str,
        provenance: Provenance,
        *,
        resume: bool,
        extend: bool = False,
        reread: Callable[[Path], str] = Path.read_text,
    ) -> RunFolder:
        """Start a run in a new or empty folder, or continue the one that is there.

        Args:
            recipe_yaml: the resolved recipe.
            extend: let a run that goes on have other numbers of steps; see `runs.extending`.
            reread: returns the recipe that a run was started from, as this release writes it.

        Raises:
            RunError: the folder holds a run and `resume` is off, another process writes to it, the
                run there was started from another recipe or model or by a release that this one
                cannot follow, or the folder holds links that lead out of it.
        """
        with write_errors(path):
            _check_usable(path)
            make_folder(path)
            refuse_links(path)
            lock = _lock(path)
            try:
                continues = _continues(path, resume)
                _take_over(path, lock)
                notice = None
                if continues:
                    notice = _check_same(path, recipe_yaml, provenance, reread, extend)
                else:
                    notice = _start(path, recipe_yaml, provenance, resume=resume)
            except BaseException:
                lock.close()
                raise
            return cls(path, lock, notice)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, Interrupted | OtherProcessEnded):
            with contextlib.suppress(RunError):  # the folder is gone, or its disk is full
                self.check_there()
                message = redact(f"{type(error).__name__}: {first_line(error)}")
                write_json(self.path / FAILED, {"time": now(), "error": message})
        self._lock.close()

    def check_there(self) -> None:
        """Make sure that writes still go to this run.

        Raises:
            RunError: the folder was removed, moved or replaced.
        """
        try:
            same = os.path.samestat(
                os.fstat(self._lock.fileno()), (self.path / "run.lock").stat(follow_symlinks=False)
            )
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            raise RunError(
                f"{self.path}: was removed, moved or replaced while the run was under way; put it "
                "back, then go on with `resume=True`"
            )

    def counts_whole_epochs(self) -> bool:
        """Return whether the run's epochs are whole passes; early releases rounded them to steps."""
        return bool(read_json(self.path / "run.json").get("whole_epochs", False))

    @property
    def metrics_path(self) -> Path:
        """File with one line of JSON for each step, evaluation and warning."""
        return self.path / "metrics.jsonl"

    def log(self, record: Mapping[str, object]) -> None:
        """Append one whole line to the metrics, in one write."""
        self._append(self.metrics_path, record)
        if self.on_change is not None:
            self.on_change()

    def log_time(self, record: Mapping[str, object]) -> None:
        """Append one whole line to the times of the stages, in one write."""
        self._append(self.path / TIMES, record)

    def _append(self, path: Path, record: Mapping[str, object]) -> None:
        line = json.dumps(record, allow_nan=False) + "\n"
        with write_errors(path):
            self.check_there()
            with open(path, "ab", buffering=0, opener=owner_only) as file:
                if file.write(line.encode()) < len(line.encode()):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def metrics(self) -> list[JsonObject]:
        """Read every whole line of the metrics so far; see `read_metrics`."""
        return read_metrics(self.metrics_path)

    def forget_metrics_after(self, phase: str, step: int) -> None:
        """Drop a phase's metrics after a step, from whose checkpoint it now continues."""
        remaining = [r for r in self.metrics() if r["phase"] != phase or r["step"] <= step]
        text = "".join(json.dumps(r, allow_nan=False) + "\n" for r in remaining)
        # A program that follows the file loses it when it is replaced.
        if not self.metrics_path.exists() or self.metrics_path.read_text("utf-8") != text:
            write_text(self.metrics_path, text)
            if self.on_change is not None:
                self.on_change()


def read_metrics(path: Path) -> list[JsonObject]:
    """Read every whole line of a run's metrics.

    Raises:
        RunError: a line is damaged.
    """
    return _read_log(path, lambda record: (record["phase"], record["step"] + 1))


def read_times(run: Path) -> list[JsonObject]:
    """Read every whole line of the times of a run's stages.

    Raises:
        RunError: a line is damaged.
    """
    return _read_log(run / TIMES, lambda record: (record["stage"], record["seconds"] + 1))


def _read_log(path: Path, check: Callable[[JsonObject], object]) -> list[JsonObject]:
    """Read every whole line of a log; `check` raises if a record is damaged."""
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
            check(record)
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(
                f"{path}:{number}: damaged; delete this line, then go on with `resume=True`"
            ) from error
        records.append(record)
    return records


def now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_usable(path: Path) -> None:
    """Refuse a path that is a file, or a folder with other things in it."""
    if path.exists() and not path.is_dir():
        raise RunError(f"{path}: is a file; name another `run_dir`")
    if not (path / "run.json").exists() and path.is_dir() and any(map(_is_foreign, path.iterdir())):
        raise RunError(f"{path}: is not empty and holds no run; name another `run_dir`")


def _is_foreign(path: Path) -> bool:
    """Return whether no run writes such an entry before run.json."""
    return path.name not in ("run.lock", "recipe.yaml") and not path.name.startswith(".")


def _lock(path: Path) -> IO[str]:
    """Lock a run folder for this process."""
    lock = try_lock(path / "run.lock")
    if lock is None:
        owner = (path / "run.lock").read_text("utf-8").strip() or "another process"
        raise RunError(f"{path}: in use by {owner}; wait until it ends, or stop it first")
    return lock


def try_lock(path: Path, *, wait: bool = False) -> IO[str] | None:
    """Lock a file for this process until it is closed; None: another process has it.

    Args:
        wait: wait until it is free.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    lock = os.fdopen(owner_only(str(path), flags), "a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        lock.close()
        return None
    return lock


def _continues(path: Path, resume: bool) -> bool:
    """Return whether a run with results is there to continue."""
    existing = (path / "run.json").exists() and has_results(path)
    if existing and not resume:
        raise RunError(
            f"{path}: holds a run already; go on with `resume=True`, or name another `run_dir`"
        )
    return existing


def _take_over(path: Path, lock: IO[str]) -> None:
    """Name this process as the owner, and clear up after the one before."""
    lock.truncate(0)
    lock.write(f"process {os.getpid()} since {now()}")
    lock.flush()
    (path / FAILED).unlink(missing_ok=True)
    remove_leftovers(path)
    complete_extension(path)
    _drop_torn_line(path / TIMES)


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that a process was killed in the middle of."""
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        write_bytes(path, data[: data.rfind(b"\n") + 1])


def _start(path: Path, recipe_yaml: str, provenance: Provenance, *, resume: bool) -> str | None:
    """Begin a run, in place of one that was refused or stopped before it had results.

    Args:
        resume: the run goes on, and its times count, too.

    Returns:
        A sentence, if it was to go on and its recipe is another one now.
    """
    before = path / "recipe.yaml"
    changed = resume and before.exists() and before.read_text("utf-8") != recipe_yaml
    record = path / "run.json"
    began = read_json(record).get("started") if resume and record.exists() else None
    shutil.rmtree(path / "data", ignore_errors=True)
    for name in (
        "data.json",
        "contamination.json",
        "template.json",
        "lint.json",
        "gates.json",
        *(() if resume else (TIMES,)),
    ):
        (path / name).unlink(missing_ok=True)
    write_text(path / "recipe.yaml", recipe_yaml)
    # If the run and its model are moved together, this still leads to the model.
    from_run = os.path.relpath(provenance.model_path, path)
    started = {
        "version": VERSION,
        "started": began or now(),
        "whole_epochs": True,
        **provenance.to_json(),
        "model_from_run": from_run,
    }
    write_json(record, started)
    if not changed:
        return None
    return (
        "nothing was trained or measured before the stop: the run begins anew, with the recipe and settings "
        "that are given now"
    )


def has_results(path: Path) -> bool:
    """Return whether anything was trained or measured; not if the recipe or data was refused."""
    return any(found for kind in _RESULTS for found in path.glob(kind))


def _check_same(
    path: Path,
    recipe_yaml: str,
    provenance: Provenance,
    reread: Callable[[Path], str],
    extend_run: bool,
) -> str | None:
    """Refuse to continue a run of another format, model or recipe; upgrade a run of format 1.

    Returns:
        What was changed, where the recipe has other numbers of steps and `extend_run` is on.
    """
    record = read_json(path / "run.json")
    version = record.get("version") if isinstance(record, dict) else None
    if version not in (1, VERSION):
        raise RunError(
            f"{path}: written by another release (run format {version}, this one reads 1 "
            f"to {VERSION}); go on with that release, or name another `run_dir`"
        )
    before, after = record.get("model_sha256"), provenance.model_sha256
    if before != after:
        raise RunError(
            f"{path}: was started from other weights than {provenance.model} "
            f"holds now (sha256 {before}, now {after}); put those back, or name another `run_dir`"
        )
    started_with = reread(path / "recipe.yaml")
    extension = None
    if differs_in_reporting_alone(started_with, recipe_yaml):
        write_text(path / "recipe.yaml", recipe_yaml)
    elif started_with != recipe_yaml:
        extension = find_extension(path, started_with, recipe_yaml)
        if not extend_run:
            raise RunError(
                f"{path}: was started with another recipe; to go on with a changed one, train all "
                "phases: forty2 run RECIPE --resume"
            )
    initial, now_initial = record.get("init_from_sha256"), provenance.init_from_sha256
    if initial != now_initial:
        raise RunError(
            f"{path}: went on from another adapter than {provenance.init_from} holds now (sha256 "
            f"{initial}, now {now_initial}); put that one back, or name another `run_dir`"
        )
    if version == 1:
        _upgrade(path)
        write_json(path / "run.json", {**record, "version": VERSION})
    if extension is None:
        return None
    extend(path, extension)
    return extension.message


def _upgrade(path: Path) -> None:
    """Bring a run of format 1 to format 2."""
    for unsealed in path.glob("work/*/last"):
        raise RunError(
            f"{unsealed}: a checkpoint without checksums, by a release that wrote none; "
            f"go on with that release, or delete {unsealed.parent}: the phase starts anew"
        )
    for best in path.glob("work/*/best"):
        # It belongs to the newest checkpoint, or to a later evaluation, which is then repeated.
        states = map(read_json, best.parent.glob("step*/state.json"))
        newest = max(states, key=lambda state: state["step"], default={"best": None})
        if newest["best"] is not None:
            best.replace(best.with_name(f"best{newest['best']['step']}"))
    for phase in finished_phases(path):
        seal(phase)
    for result in path.glob("benchmarks/*.json"):
        write_sealed(result, read_json(result))
