"""A run's notes and tags: RUN/notes.json. They are nowhere else, so the file is written whole."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from forty2.errors import RunError
from forty2.files import read_json, write_json
from forty2.report.json_records import visible

NOTES = "notes.json"
_TAG = re.compile(r"[\w.+:/-]{1,64}")


@dataclass(frozen=True, slots=True)
class Note:
    """A remark on a run."""

    time: str
    """When it was written: UTC, ISO 8601."""
    text: str


@dataclass(frozen=True, slots=True)
class Notes:
    """The notes and tags of a run."""

    notes: list[Note] = dataclasses.field(default_factory=list)
    tags: list[str] = dataclasses.field(default_factory=list)


def read_notes(run: Path) -> Notes:
    """Read a run's notes and tags; without a file there are none.

    Raises:
        RunError: the file is damaged.
    """
    file = run / NOTES
    if not file.exists():
        return Notes()
    found = visible(read_json(file))
    try:
        notes = [Note(str(one["time"]), str(one["text"])) for one in found["notes"]]
        return Notes(notes, [str(tag) for tag in found["tags"]])
    except (TypeError, LookupError) as error:
        raise RunError(f"{file}: damaged; mend it, or move it away and write anew") from error


def add_note(run: Path, text: str, *, replace: bool = False) -> Notes:
    """Add a note to a run.

    Args:
        replace: drop the earlier notes.

    Raises:
        RunError: the text is empty, or the file is damaged or not writable.
    """
    if not text.strip():
        raise RunError("the note is empty; write a few words in quotes")
    with _changing(run) as before:
        kept = [] if replace else before.notes
        return _write(
            run,
            Notes(
                [*kept, Note(datetime.now(UTC).isoformat(timespec="seconds"), text.strip())],
                before.tags,
            ),
        )


def change_tags(run: Path, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Notes:
    """Add and remove tags of a run.

    Raises:
        RunError: a tag is not one word or is not there to remove, or the file is damaged or not
            writable.
    """
    for tag in add:
        if not _TAG.fullmatch(tag):
            raise RunError(
                f"{tag!r}: not a tag; write one word of letters, digits and . _ + : / -, at most 64"
            )
    with _changing(run) as before:
        for tag in remove:
            if tag not in before.tags:
                there = ", ".join(before.tags) or "none"
                raise RunError(f"{run}: has no tag {tag!r}; its tags: {there}")
        tags = dict.fromkeys([*before.tags, *add])
        return _write(run, Notes(before.notes, [tag for tag in tags if tag not in remove]))


@contextlib.contextmanager
def _changing(run: Path) -> Iterator[Notes]:
    """Keep other processes from changing the notes between reading and writing."""
    folder = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield read_notes(run)
    finally:
        os.close(folder)


def _write(run: Path, notes: Notes) -> Notes:
    write_json(run / NOTES, dataclasses.asdict(notes))
    return notes
