"""Paths in a recipe, which are relative to the folder of its file.

A recipe that was read has them relative to the working directory, or absolute if it was read from an
absolute path elsewhere; one that is stored with a run has them relative to the run folder. So a folder
of recipe and data, or of run and data, can be moved. Absolute paths stay as they are, and paths given
by `--set` are relative to the working directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forty2.errors import RunError
from forty2.files import JsonObject
from forty2.recipe.document import COMMAND_LINE, Document, Location, Problem
from forty2.recipe.templates import packaged_templates
from forty2.run_paths import expand_run_name

RECIPE = "recipe.yaml"
"""Name of the recipe in a folder that stands for it."""
STORED = "# Paths are relative to this file.\n"
"""First line of a recipe stored with a run. Earlier releases wrote none: the paths of their runs are
relative to the directory in which the run was started."""
NO_FILES = ("builtin:", "hub:")
"""Beginnings of data sources that are not files, as `data.sources` reads them."""
_BUILT_IN = "probe"
"""Questions of ours, in place of a file of questions."""
STARTER = "smollm2"
"""Name of the starter model, in place of a folder."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def path_values(tree: JsonObject) -> Iterator[tuple[Location, str]]:
    """Yield the place and value of every path in a recipe; what names no file is left out."""
    found = tree.get("phases")
    sections = found if isinstance(found, dict) else {}
    for name, phase in sections.items():
        for key in ("data", "valid", "eval_prompts"):
            yield from _path(phase, key, ("phases", name))
        for number, source in replay_sources(phase):
            if source not in sections and not source.startswith(NO_FILES):
                yield ("phases", name, "replay", number, "from"), source
    for key in ("model", "chat_template", "init_from"):
        yield from _path(tree, key, ())
    yield from _path(tree.get("fuse"), "out", ("fuse",))
    benchmark = tree.get("benchmark")
    yield from _path(benchmark, "questions", ("benchmark",))
    tasks = benchmark.get("tasks") if isinstance(benchmark, dict) else None
    for number, task in enumerate(tasks if isinstance(tasks, list) else ()):
        yield from _path(task, "data", ("benchmark", "tasks", number))


def replay_sources(phase: object) -> Iterator[tuple[int, str]]:
    """Yield the place and the source of each entry of a phase's `replay`: a phase, or a path."""
    entries = phase.get("replay") if isinstance(phase, dict) else None
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        source = entry.get("from") if isinstance(entry, dict) else None
        if isinstance(source, str) and source:
            yield number, source


def resolve_paths(document: Document, folder: str) -> Iterator[Problem]:
    """Make the paths of a recipe relative to the working directory, in place.

    Args:
        folder: folder that they are relative to.

    Yields:
        A problem for each file that is there only relative to the working directory.
    """
    for at, written in list(path_values(document.tree)):
        if at == ("init_from",) and (run := _run_named(written, document, folder)) is not None:
            _set(document.tree, at, run)
            continue
        if document.line_of(at) == COMMAND_LINE or not _is_relative(written):
            continue
        resolved = moved(written, folder, os.curdir)
        only_here = not _exists(resolved) and _exists(written)
        if at == ("model",) and not only_here and _is_hub_name(written, resolved):
            continue
        if only_here and at != ("fuse", "out"):
            message = (
                f"{resolved}: no such file or folder, but {written} is in the working directory; paths "
                f"are relative to the recipe's file, so write {moved(written, os.curdir, folder)}"
            )
            yield document.problem(at, message)
        _set(document.tree, at, resolved)


def rebase_paths(tree: JsonObject, folder: str | Path) -> None:
    """Make the paths of a recipe that was read relative to a folder, in place."""
    for at, path in list(path_values(tree)):
        if _is_relative(path) and not (at == ("model",) and _is_hub_name(path, path)):
            _set(tree, at, moved(path, os.curdir, str(folder)))


def moved(path: str, before: str, after: str) -> str:
    """Write a path that is relative to one folder as relative to another."""
    if os.path.abspath(before) == os.path.abspath(after):
        return path
    joined = os.path.normpath(os.path.join(before, path))
    return joined if after == os.curdir else os.path.relpath(joined, after)


def _path(section: object, key: str, at: Location) -> Iterator[tuple[Location, str]]:
    value = section.get(key) if isinstance(section, dict) else None
    if not isinstance(value, str) or not value or value.startswith(NO_FILES):
        return
    if key == "chat_template" and value in packaged_templates():
        return
    if value != (STARTER if key == "model" else _BUILT_IN):
        yield (*at, key), value


def _is_relative(path: str) -> bool:
    return not os.path.isabs(path) and not path.startswith("~")


def _is_hub_name(model: str, path: str) -> bool:
    """Return whether a model that may be a folder is a name on the hub."""
    return _HUB_NAME.fullmatch(model) is not None and not _exists(path)


def _run_named(written: str, document: Document, folder: str) -> str | None:
    """Return the run that `init_from` names by its recipe's folder or its name; None: it is a path."""
    given_here = document.line_of(("init_from",)) == COMMAND_LINE or not _is_relative(written)
    beside = written if given_here else moved(written, folder, os.curdir)
    # Beside the recipe, a bare name would be that of a phase of its own run.
    own_phase = not os.path.dirname(written) and not _exists(beside)
    for name in (written,) if own_phase else (beside, written):
        try:
            run = expand_run_name(name)
        except RunError:  # several have the name: reported where the adapter is read
            return None
        if run != Path(os.path.expanduser(name)):
            return str(run)
        if os.path.exists(run):
            return None
    return None


def _exists(path: str) -> bool:
    return os.path.exists(path) or os.path.isdir(path.rpartition("#")[0])


def _set(tree: Any, at: Location, value: str) -> None:
    for key in at[:-1]:
        tree = tree[key]
    tree[at[-1]] = value
