"""The index of the archive: entries of runs that have not changed since they were read.

It is a cache in SQLite, in the user's cache folder. Nothing is in it alone: deleted, damaged or
locked, it costs the time of reading the runs' folders again. An entry is used only if every file of
its run still has the size, time and inode that it had.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from forty2 import machine
from forty2.errors import RunError
from forty2.files import make_folder
from forty2.runs.archive.entry import Entry

VERSION = 1
"""Version of an entry's fields and of how they are read; one of another version is read again."""
_WAIT = 1.0
"""Seconds to wait for another process that writes the index."""


def index_path() -> Path:
    """Return the index's file."""
    return machine.cache_dir() / "runs.sqlite3"


def stored_entries(keys: Mapping[str, str]) -> dict[str, Entry]:
    """Return the entries that are up to date, by the run's path.

    Args:
        keys: the state of each run's files, by the run's path.
    """
    found: dict[str, Entry] = {}
    with _index() as index:
        if index is None:
            return {}
        for path, key, entry in index.execute("SELECT path, key, entry FROM runs"):
            if keys.get(path) == key:
                with contextlib.suppress(ValueError, TypeError, LookupError):
                    found[path] = Entry.from_json(json.loads(entry))
    return found


def store_entries(entries: Iterable[tuple[str, Entry]], gone: Iterable[str] = ()) -> None:
    """Store entries with the state of their files; forget runs that are gone."""
    with _index() as index:
        if index is not None:
            index.executemany(
                "INSERT OR REPLACE INTO runs VALUES (?, ?, ?)",
                [(one.path, key, json.dumps(one.to_json())) for key, one in entries],
            )
            index.executemany("DELETE FROM runs WHERE path = ?", [(path,) for path in gone])


def known_paths() -> list[Path]:
    """Return the folders of all runs that were ever listed and are still there."""
    rows: list[tuple[str]] = []
    with _index() as index:
        if index is not None:
            rows = index.execute("SELECT path FROM runs").fetchall()
    return [Path(path) for (path,) in rows if (Path(path) / "run.json").exists()]


@contextlib.contextmanager
def _index() -> Iterator[sqlite3.Connection | None]:
    """Open the index, in one transaction; None: it cannot be used, e.g. on a read-only disk.

    A damaged index is deleted and made again.
    """
    connection = _open(index_path())
    try:
        yield connection
        if connection is not None:
            connection.commit()
    except sqlite3.OperationalError as error:
        if "no such" in str(error):  # not our table
            index_path().unlink(missing_ok=True)
        # otherwise locked, or the disk is full: the next listing reads the folders
    except sqlite3.DatabaseError:
        index_path().unlink(missing_ok=True)
    finally:
        if connection is not None:
            connection.close()


def _open(file: Path) -> sqlite3.Connection | None:
    with contextlib.suppress(OSError, RunError):
        make_folder(file.parent)
        for _ in range(2):
            try:
                return _prepared(sqlite3.connect(file, timeout=_WAIT))
            except sqlite3.OperationalError:
                return None
            except sqlite3.DatabaseError:  # not a database, or damaged
                file.unlink(missing_ok=True)
    return None


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Make the table, unless it is there in this version."""
    if connection.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        connection.execute("DROP TABLE IF EXISTS runs")
        connection.execute("CREATE TABLE runs (path TEXT PRIMARY KEY, key TEXT, entry TEXT)")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    return connection
