"""Finding the runs in folders, by what they are."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from forty2.errors import RunError
from forty2.notebook import html_table
from forty2.run_paths import HOME, run_folders
from forty2.runs.archive.entry import Entry, is_running, read_entry
from forty2.runs.archive.index import store_entries, stored_entries
from forty2.runs.archive.listing import metric_key, table

LOWER_IS_BETTER = ("leak_rate", "perplexity", "kl", "loss")
"""Endings of the names of metrics whose best value is the lowest."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Conditions that a run must meet to be listed; None or empty: any."""

    tags: Sequence[str] = ()
    model: str | None = None
    """Part of the model's name."""
    phase: str | None = None
    """Name or objective of one of its phases."""
    state: str | None = None
    since: datetime | None = None
    """Earliest start."""

    def takes(self, entry: Entry) -> bool:
        """Return whether a run meets all conditions."""
        return (
            {*self.tags} <= {*entry.tags}
            and (self.model is None or self.model.casefold() in entry.model.casefold())
            and (self.phase is None or self.phase in {*entry.phases, *entry.phases.values()})
            and (self.state is None or self.state == entry.state)
            and (self.since is None or _began_after(entry, self.since))
        )


@dataclass(frozen=True)
class Found:
    """The runs in some folders."""

    entries: list[Entry]
    """The newest first."""
    unreadable: list[str]
    """Folders that could not be looked into, with the reason."""


class RunList(list[Entry]):
    """Runs of the archive, in order."""

    def __str__(self) -> str:
        """Format the runs as `forty2 runs` lists them, one a line."""
        return table(self) if self else "no runs"

    def _repr_html_(self) -> str:
        """Show the runs in a notebook, one a row."""
        rows = [
            [
                entry.path,
                entry.state,
                entry.started,
                entry.model,
                " → ".join(entry.phases),
                entry.verdict,
            ]
            for entry in self
        ]
        head = ["run", "state", "started", "model", "phases", "verdict"]
        return html_table(f"{len(self)} runs", head, rows)


def list_runs(
    *folders: str | Path,
    tags: Sequence[str] = (),
    model: str | None = None,
    phase: str | None = None,
    state: str | None = None,
    since: datetime | None = None,
    sort: str = "started",
    reverse: bool = False,
) -> RunList:
    """List the runs in folders and in the folders below them.

    Args:
        folders: default: `adapters/`.
        tags: only runs with all of these.
        model: only runs whose model's name contains this.
        phase: only runs with a phase of this name or objective.
        state: only runs that are `finished`, `stopped`, `running`, `failed` or `damaged`.
        since: only runs started since; with a time zone.
        sort: a metric, the best first; or `started`, `size`, `minutes`, `name`, `model` or `state`.
        reverse: sort the other way round.

    Raises:
        RunError: one of the folders is not there, or no run has the metric.
    """
    selection = Selection(tags=tags, model=model, phase=phase, state=state, since=since)
    found = find_runs(list(map(Path, folders)) or default_folders())
    for folder in found.unreadable:
        warnings.warn(folder, stacklevel=2)
    entries = [entry for entry in found.entries if selection.takes(entry)]
    return RunList(sort_runs(entries, sort, reverse=reverse))


def default_folders() -> list[Path]:
    """Return where runs are looked for unless the user names folders."""
    return [HOME] if HOME.is_dir() else []


def find_runs(folders: Sequence[Path]) -> Found:
    """Find the runs in folders and in the folders below them; a run's own folders are not searched.

    Raises:
        RunError: one of the folders is not there.
    """
    unreadable: list[str] = []
    scans = {
        str(path): _scan(path) for folder in folders for path in run_folders(folder, unreadable)
    }
    stored = stored_entries({path: scan.key for path, scan in scans.items()})
    read = [
        (scan.key, read_entry(Path(path), scan.size))
        for path, scan in scans.items()
        if path not in stored
    ]
    if read:
        # What is read while the run writes to it may be stored under an older key: then the next
        # listing finds another key, and reads it again.
        store_entries(read)
    entries = [*stored.values(), *(entry for _, entry in read)]
    entries = [
        dataclasses.replace(entry, state="running") if is_running(Path(entry.path)) else entry
        for entry in entries
    ]
    entries.sort(key=lambda entry: (entry.started, entry.path), reverse=True)
    return Found(entries, unreadable)


def sort_runs(entries: Sequence[Entry], by: str, *, reverse: bool = False) -> list[Entry]:
    """Sort runs by a metric, the best first; or by `size` or `minutes`, the largest first; `started`,
    the newest first; or `name`. Runs without the metric come last.

    Args:
        by: the metric's name, in any case, with blanks for its underscores.

    Raises:
        RunError: no run has the metric.
    """
    wanted = metric_key(by)
    value: Callable[[Entry], float | str | None]
    if wanted in ("name", "started", "model", "state"):
        value = lambda entry: str(getattr(entry, wanted))  # noqa: E731
    else:
        value = lambda entry: metric_of(entry, wanted)  # noqa: E731
    known = sorted({metric_key(name) for entry in entries for name in entry.metrics} | {"size"})
    with_value = [entry for entry in entries if value(entry) is not None]
    if entries and not with_value:
        close = difflib.get_close_matches(wanted, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        raise RunError(f"`sort` {by}: no run has this metric; {hint}")
    descending = wanted not in ("name", "model", "state") and not wanted.endswith(LOWER_IS_BETTER)
    with_value.sort(key=lambda entry: value(entry) or 0, reverse=descending != reverse)
    return [*with_value, *(entry for entry in entries if value(entry) is None)]


def metric_of(entry: Entry, name: str) -> float | None:
    """Return a run's figure by a name as `metric_key` makes it."""
    if name == "size":
        return float(entry.size)
    return next((v for key, v in entry.metrics.items() if metric_key(key) == name), None)


def _began_after(entry: Entry, since: datetime) -> bool:
    return bool(entry.started) and datetime.fromisoformat(entry.started) >= since


# --- folders --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scan:
    key: str
    """Changes whenever a file of the run does."""
    size: int


def _scan(run: Path) -> _Scan:
    """Look at every file of a run, without opening any."""
    lines, size = [], 0
    for folder, _, names in os.walk(run):
        for name in names:
            path = os.path.join(folder, name)
            try:
                about = os.lstat(path)
            except FileNotFoundError:  # written and replaced while we look
                continue
            size += about.st_size
            lines.append(f"{path}\0{about.st_mtime_ns}\0{about.st_size}\0{about.st_ino}")
    return _Scan(
        hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "replace")).hexdigest(), size
    )
