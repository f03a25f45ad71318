"""Where a run and its phases are kept, adapters/NAME/phase1_sft, and what a user may call them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from forty2.errors import RunError, first_names

HOME = Path("adapters")
"""Where runs are written unless the user names another folder."""
_RECORD = "run.json"
_RECIPE = "recipe.yaml"
_ADAPTER = "adapter_config.json"
_MODEL = "config.json"
_SHOWN = 5
"""Runs that a message names."""
_PHASE = re.compile(r"phase(\d+)_(.+)", re.DOTALL)


def run_path(name: str, folder: str | Path | None) -> Path:
    """Return the folder of a run: `folder` if given, else the one of its name."""
    return Path(folder) if folder is not None else HOME / name


def phase_label(number: int, name: str) -> str:
    """Return the name of a phase's folder, and of the stage after it.

    Args:
        number: its place in the recipe, from 1.
    """
    return f"phase{number}_{name}"


def finished_phases(run: Path, file: str = "phase.json") -> dict[Path, str]:
    """Return the folders of a run's finished phases, in order, with the phases' names.

    Args:
        file: a file that each of them holds.
    """
    found = [
        (int(match[1]), path.parent, match[2])
        for path in run.glob(f"phase*/{file}")
        if (match := _PHASE.fullmatch(path.parent.name))
    ]
    return {folder: name for _, folder, name in sorted(found)}


# --- what a user's name stands for ----------------------------------------------------------------


def expand_run_name(name: str | Path) -> Path:
    """Return the path of what a user names as a run, a phase of one, an adapter or a model.

    A folder with a recipe and a bare name stand for their run in adapters/, and NAME/PHASE for its
    phase. Anything else stands for itself, also what is not there.

    Raises:
        RunError: several runs have this name.
    """
    path = Path(os.path.expanduser(name))
    if _stands_for_itself(path):
        return path
    run = find_run(path)
    if run is not None:
        return run
    before = path.parent
    if os.path.exists(path) or len(path.parts) < 2 or (run := _run_of(before)) is None:
        return path
    # A hub's model may be owner/name, where a run is called as the owner is.
    is_phase = (
        os.path.exists(run / path.name) or path.name in finished_phases(run, _ADAPTER).values()
    )
    return run / path.name if is_phase else path


def find_run(name: str | Path) -> Path | None:
    """Return the folder of a run that the user named; None: there is none.

    Args:
        name: its path, a folder with its recipe, or its name in adapters/ or in a folder below.

    Raises:
        RunError: several runs have this name.
    """
    path = Path(os.path.expanduser(name))
    if os.path.exists(path / _RECORD):
        return path
    run = _run_of(path)
    if run is not None or len(path.parts) != 1 or not HOME.is_dir():
        return run
    named = [HOME / _from_home(run) for run in run_folders(HOME) if run.name == path.name]
    if len(named) > 1:
        places = first_names(list(map(str, named)), _SHOWN)
        raise RunError(f"{name}: several runs have this name; give one's path: {places}")
    return named[0] if named else None


def run_folder(name: str | Path) -> Path:
    """Return the folder of a run that the user named, as `find_run` does.

    Raises:
        RunError: there is no such run, or several of this name.
    """
    run = find_run(name)
    if run is None:
        path = Path(os.path.expanduser(name))
        advice = suggest_run(path) or f"; {close_runs(path)}"
        raise RunError(f"{name}: no run here ({_RECORD} is missing){advice}")
    return run


def suggest_run(name: str | Path) -> str:
    """Say which run may have been meant by a name that led to none, as the end of a message.

    Returns:
        "" if no name is close, and the folder holds no recipe and is of none.
    """
    path = Path(os.path.expanduser(name))
    if _is_recipe_folder(path):
        run = HOME / _recipe_name(path)
        if not os.path.exists(run / _RECORD):
            return f"; its recipe has no run in {run} yet: forty2 run {path}"
    if os.path.exists(path / _RECORD) and not finished_phases(path, _ADAPTER):
        return f"; this run has finished no phase yet; how to go on: forty2 runs show {path}"
    here = path.resolve()
    runs = {n: run for n, run in _runs_near(path, depth=1).items() if run.resolve() != here}
    close = difflib.get_close_matches(path.name, runs, 3)
    if close:
        return f"; did you mean {' or '.join(str(runs[name]) for name in close)}?"
    above = _run_of(path.parent) if len(path.parts) > 1 and not os.path.exists(path) else None
    phases = list(finished_phases(above, _ADAPTER).values()) if above is not None else []
    return f"; the finished phases of {above} are {', '.join(phases)}" if phases else ""


def close_runs(path: Path) -> str:
    """Name the runs whose names are close to a path that holds no run, as advice for a message."""
    runs = _runs_near(path, depth=3)
    close = difflib.get_close_matches(path.name, runs, 3)
    if close:
        return f"did you mean {' or '.join(str(runs[name]) for name in close)}?"
    if runs:
        return f"runs near it: {first_names([str(run) for run in runs.values()], _SHOWN)}."
    return f"there are no runs in {HOME} or {path.parent}."


def run_folders(
    folder: Path,
    unreadable: list[str] | None = None,
    seen: set[tuple[int, int]] | None = None,
    depth: int = 64,
) -> Iterator[Path]:
    """Yield the absolute paths of the runs in a folder, each once, though links lead to it again.

    Args:
        unreadable: list to which folders are added that cannot be looked into, with the reason.
        seen: folders that were looked into, by device and inode.
        depth: levels of folders below this one.

    Raises:
        RunError: there is no such folder.
    """
    folder, seen = folder.resolve(), set() if seen is None else seen
    try:
        about = folder.stat()
        if (about.st_dev, about.st_ino) in seen:
            return
        seen.add((about.st_dev, about.st_ino))
        if (folder / _RECORD).exists():
            yield folder
            return
        with os.scandir(folder) as listed:
            below = sorted(
                entry.path for entry in listed if not entry.name.startswith(".") and entry.is_dir()
            )
    except FileNotFoundError as error:
        raise RunError(f"{folder}: no such folder; name one that holds runs") from error
    except NotADirectoryError as error:
        raise RunError(f"{folder}: is a file; name a folder that holds runs") from error
    except OSError as error:
        if unreadable is not None:
            unreadable.append(f"{folder}: cannot be looked into: {error.strerror}")
        return
    if depth:
        for path in below:
            yield from run_folders(Path(path), unreadable, seen, depth - 1)


def _stands_for_itself(path: Path) -> bool:
    """Return whether a path is a file, a run, a phase's name in a run, an adapter or a model."""
    if any(os.path.exists(path / file) for file in (_RECORD, _ADAPTER, _MODEL)):
        return True
    in_run = not os.path.exists(path) and os.path.exists(path.parent / _RECORD)
    return (
        in_run
        or os.path.isfile(path)
        or (os.path.isdir(path) and bool(finished_phases(path, _ADAPTER)))
    )


def _run_of(path: Path) -> Path | None:
    """Return the run in adapters/ of a recipe's folder, or of a path relative to adapters/."""
    if _is_recipe_folder(path):
        name = _recipe_name(path)
    elif path.is_absolute() or os.pardir in path.parts or not path.parts:
        return None
    else:
        name = str(path)
    return HOME / name if os.path.exists(HOME / name / _RECORD) else None


def _is_recipe_folder(path: Path) -> bool:
    """Return whether a folder holds a recipe to run, not that of a sweep or a run in adapters/."""
    inside = os.path.isfile(path / _RECIPE) and not _stands_for_itself(path)
    return inside and not path.resolve().is_relative_to(HOME.resolve())


def _recipe_name(folder: Path) -> str:
    """Return the name that a folder's recipe gives its run; the folder's own if it gives none."""
    import yaml

    try:
        tree = yaml.safe_load((folder / _RECIPE).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        tree = None
    name = tree.get("name") if isinstance(tree, dict) else None
    return name if isinstance(name, str) and Path(name).name == name else folder.resolve().name


def _runs_near(path: Path, depth: int) -> dict[str, Path]:
    """Return the runs in adapters/ and in the folder of a path, by name."""
    runs: dict[str, Path] = {}
    for folder in (HOME, path.parent):
        if os.path.isdir(folder):
            runs |= {run.name: _shown(run) for run in run_folders(folder, depth=depth)}
    return runs


def _shown(run: Path) -> Path:
    """Return a path relative to the current folder, if it is below it."""
    here = Path.cwd()
    return run.relative_to(here) if run.is_relative_to(here) else run


def _from_home(run: Path) -> str:
    return str(run.relative_to(HOME.resolve()))
