"""Removal of runs: what it would free, what speaks against it, and the removal, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forty2.errors import RunError
from forty2.export.record import adapter_of
from forty2.files import remove_leftovers, write_errors
from forty2.run_paths import HOME
from forty2.runs.archive.entry import Entry, absolute, is_running, read_entry
from forty2.runs.archive.finding import find_runs
from forty2.runs.archive.index import known_paths, store_entries


@dataclass(frozen=True, slots=True)
class Removal:
    """A run to remove, and what goes with it."""

    run: Path
    size: int
    """Bytes of the run folder."""
    fused: dict[Path, int]
    """Fused models that go with it, and their bytes."""
    staying: dict[Path, int]
    """Fused models of the run that stay, and their bytes."""
    losses: list[str]
    """Sentences about losses to other runs or to the user; each needs `force`."""

    @property
    def frees(self) -> int:
        """Bytes that are freed."""
        return self.size + sum(self.fused.values())


def plan_removal(runs: Sequence[Path], *, fused: bool = False) -> list[Removal]:
    """Work out what removing these runs would delete and who would miss it. Nothing is changed.

    Args:
        runs: run folders.
        fused: remove their fused models, too.

    Raises:
        RunError: a run is under way, a link, or named twice.
    """
    folders = [_checked(run) for run in runs]
    if len({*folders}) < len(folders):
        raise RunError("a run is named twice; name each run to remove once")
    others = [entry for entry in _known(folders) if Path(entry.path) not in folders]
    return [_plan(folder, others, fused) for folder in folders]


def check_losses(removals: Sequence[Removal], *, force: bool = False) -> None:
    """Refuse a removal of what would be missed, unless it is forced.

    Raises:
        RunError: naming everything that would be missed.
    """
    losses = [loss for removal in removals for loss in removal.losses]
    if losses and not force:
        raise RunError(f"{'; '.join(losses)}; to remove it nevertheless, add `force=True`")


def remove(removals: Sequence[Removal], *, force: bool = False) -> None:
    """Remove runs: all of them disappear at once, then their files are deleted.

    Args:
        force: remove what has `losses`, too.

    Raises:
        RunError: something would be missed, a run has begun to work, or a folder cannot be moved;
            then everything stays.
    """
    check_losses(removals, force=force)
    with contextlib.ExitStack() as locks:
        for removal in removals:
            locks.enter_context(_locked(removal.run))
        folders = [folder for removal in removals for folder in (*removal.fused, removal.run)]
        moved = _move_aside(folders)
        store_entries([], gone=[str(removal.run) for removal in removals])
    for folder in moved:
        with write_errors(folder):
            shutil.rmtree(folder)


def _plan(folder: Path, others: Sequence[Entry], with_fused: bool) -> Removal:
    entry = read_entry(folder, _size(folder))
    models = {Path(path): _size(Path(path)) for path in entry.fused if _is_of(folder, Path(path))}
    outside = {path: size for path, size in models.items() if not path.is_relative_to(folder)}
    gone = [*outside] if with_fused else []
    losses = [
        f"{path} is the only copy of the fused model, and would go with the run"
        for path in models
        if path in gone or path not in outside
    ]
    for other in others:
        for key, used in (("init_from", other.init_from), ("model", other.model_path)):
            path = Path(os.path.normpath(used)) if used else None
            if path and any(path.is_relative_to(place) for place in (folder, *gone)):
                losses.append(f"{other.path} goes on from {path} ({key})")
    return Removal(
        run=folder,
        size=entry.size,
        fused={path: outside[path] for path in gone},
        staying={path: size for path, size in outside.items() if path not in gone},
        losses=losses,
    )


def _checked(run: Path) -> Path:
    """Return a run's absolute path, after checks that it may be moved."""
    if run.is_symlink():
        raise RunError(f"{run}: is a link; remove the folder {run.resolve()}, then the link")
    folder = run.resolve()
    if not (folder / "run.json").exists():
        raise RunError(f"{run}: no run here (run.json is missing)")
    if is_running(folder):
        raise RunError(f"{run}: is running; stop it first, or wait for its end")
    return folder


def _known(folders: Sequence[Path]) -> list[Entry]:
    """Return the runs that may use these: beside them, in adapters/, and wherever runs were listed."""
    places = {file.parent for folder in folders for file in folder.parent.glob("*/run.json")}
    places |= {*known_paths()}
    if HOME.is_dir():
        places.add(HOME.resolve())
    return find_runs(sorted(places)).entries


def _is_of(run: Path, model: Path) -> bool:
    """Return whether a model is there that was fused from this run; another may be in its place."""
    adapter = adapter_of(model)
    return adapter is not None and Path(absolute(adapter, run)).resolve().is_relative_to(run)


def _size(folder: Path) -> int:
    files = (os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)
    return sum(os.lstat(file).st_size for file in files)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep runs out of the folder while it is moved."""
    with (folder / "run.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder}: is running; stop it first, or wait for its end") from error
        yield


def _move_aside(folders: Sequence[Path]) -> list[Path]:
    """Rename folders so that they count as unfinished, which the next write there deletes.

    Returns:
        The new paths.

    Raises:
        RunError: one cannot be renamed; those before it have their names again.
    """
    moved: list[tuple[Path, Path]] = []
    try:
        for folder in folders:
            with write_errors(folder):
                remove_leftovers(folder.parent, folder.name)
                aside = folder.with_name(f".{folder.name}.{os.getpid()}")
                folder.rename(aside)
            moved.append((folder, aside))
    except BaseException:
        for folder, aside in reversed(moved):
            aside.rename(folder)
        raise
    return [aside for _, aside in moved]
