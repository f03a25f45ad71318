"""Files that are kept only to save time, in the cache folder and in runs, and their removal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from forty2 import machine
from forty2.errors import RunError
from forty2.files import remove_leftovers, write_errors
from forty2.runs.archive.entry import is_running
from forty2.runs.archive.finding import find_runs
from forty2.runs.archive.index import index_path, known_paths

_FOLDERS = {
    "models": "downloaded and imported models; fetched again when needed",
    "base": "base models' log-probabilities on neutral texts; computed again by the next measurement",
    "reference": "log-probabilities before DPO and KTO; computed again by the next run",
    "bench": "other trainers, for forty2 speed; installed again when needed",
    "group": "what processes that train together left behind",
}
"""Meaning of each folder in the cache folder, by its name."""


@dataclass(frozen=True, slots=True)
class Cache:
    """One kind of files that can be made again."""

    name: str
    meaning: str
    paths: list[Path]
    size: int
    """Bytes."""


def find_caches(runs: Sequence[Path]) -> list[Cache]:
    """Find everything that can be made again: the cache folder, the index, stored frozen states.

    Args:
        runs: folders in which to look for runs that stopped with states of frozen blocks.

    Raises:
        RunError: one of the folders is not there.
    """
    top = machine.cache_dir()
    entries = find_runs(runs).entries
    states = [file for one in entries for file in Path(one.path).glob("work/*/*.states")]
    index = list(top.glob(f"{index_path().name}*"))
    found = [
        *(_cache(name, meaning, _inside(top / name)) for name, meaning in _FOLDERS.items()),
        _cache(
            "states",
            "frozen blocks' output in stopped runs; computed again when a run goes on",
            states,
        ),
        _cache("index", "index of runs; made again by the next listing", index),
    ]
    return [cache for cache in found if cache.paths]


def unknown_files() -> list[Path]:
    """Return what is in the cache folder and not known to this release; `clean` leaves it alone."""
    top = machine.cache_dir()
    known = {*_FOLDERS, *(path.name for path in top.glob(f"{index_path().name}*"))}
    return [path for path in _inside(top) if path.name not in known]


def clean(caches: Collection[Cache]) -> None:
    """Delete caches, each file or folder whole.

    Raises:
        RunError: a run is under way, or something cannot be deleted.
    """
    for run in known_paths():
        if is_running(run):
            raise RunError(
                f"{run}: is running and may use the caches; clean them when it has ended"
            )
    for cache in caches:
        for path in cache.paths:
            with write_errors(path):
                _delete(path)


def _delete(path: Path) -> None:
    """Rename, then delete: no program finds half of a cached model."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    path.rename(aside)
    shutil.rmtree(aside)


def _inside(folder: Path) -> list[Path]:
    """Return what is in a folder, without what ended processes left unfinished."""
    if not folder.is_dir():
        return []
    remove_leftovers(folder)
    return sorted(folder.iterdir())


def _cache(name: str, meaning: str, paths: list[Path]) -> Cache:
    return Cache(name, meaning, paths, sum(map(_size, paths)))


def _size(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    files = (os.path.join(top, name) for top, _, names in os.walk(path) for name in names)
    return sum(os.lstat(file).st_size for file in files)
