"""Reading of rows from files of several kinds, from folders, and from data sets of the hub.

    .jsonl .ndjson .json .csv .tsv .txt, each also gzipped (.gz); .parquet, .arrow
    FOLDER                           its files for training, also as `datasets` saves them
    FOLDER#SPLIT                     its files of the split valid or test
    hub:OWNER/NAME[:CONFIG][#SPLIT]  streamed through `datasets`; SPLIT is train if absent

Each row comes with its origin, "file:line" where the kind of file has lines, so that any later error
can name it.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from forty2.data.readers.files import (
    LONGEST,
    decoded,
    numbered_lines,
    open_file,
    reason_of,
    too_long,
)
from forty2.data.readers.folders import files_of, kind_of
from forty2.data.readers.json_rows import dumps, json_rows, refuse_json, unique_keys
from forty2.data.readers.tables import arrow_rows, csv_rows, parquet_rows, without_empty
from forty2.errors import DataError
from forty2.files import JsonObject, close_name

__all__ = [
    "BUILTIN",
    "HUB",
    "KINDS",
    "MANIFEST",
    "dumps",
    "no_rows",
    "read_rows",
    "unique_keys",
    "valid_beside",
]

KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv", ".txt")
MANIFEST = "manifest.json"
BUILTIN, HUB = "builtin:", "hub:"
"""Prefixes of sources that are not files: built-in sets by name, and the hub's."""
_URL = re.compile(r"[a-z][a-z0-9]+:/", re.IGNORECASE)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TEXT_OVERHEAD = 50
"""Bytes of memory that a text takes in addition to its characters."""

Origin = str
Reader = Callable[[Path], Iterator[tuple[Origin, JsonObject]]]


def read_rows(
    source: str | Path, complain: Callable[[str], None] | None = None
) -> Iterator[tuple[Origin, JsonObject]]:
    """Yield (origin, row) for every row of a file, a folder or a hub data set.

    Args:
        complain: called with a one-line message about each line of JSON Lines, element of JSON or row
            of CSV that cannot be used; it is skipped. None: the first such one raises.

    Raises:
        DataError: it cannot be read, or holds something that is not a row; names file and line.
    """
    if str(source).startswith(HUB):
        yield from _hub(str(source))
        return
    if str(source).startswith(BUILTIN):
        name = str(source).removeprefix(BUILTIN)
        raise DataError(
            f"{source}: only a recipe takes a built-in set by its name; write its files first: forty2 "
            f"data build {name} --output-dir FOLDER"
        )
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        for file in files_of(path, "train", KINDS):
            yield from read_rows(file, complain)
        return
    folder, _, split = str(path).rpartition("#")
    if split in ("valid", "test") and os.path.isdir(folder) and not path.exists():
        for file in files_of(Path(folder), split, KINDS):
            yield from read_rows(file, complain)
        return
    kind = kind_of(path)
    reader = _READERS.get(kind)
    if _URL.match(str(source)):
        raise DataError(f"{source}: is an address, not a file; download it first")
    if reader is None and not path.exists():
        hub = (
            f"; a data set of the hub is {HUB}{source}" if _HUB_NAME.fullmatch(str(source)) else ""
        )
        raise DataError(f"{path}: there is no such file or folder{close_name(path) or hub}")
    if reader is None:
        raise DataError(
            f"{path}: rows of kind {kind or 'no suffix'} are not read; use {', '.join(KINDS)}"
        )
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is no file but a pipe or a device; save it to a file first")
        if kind in (".parquet", ".arrow") and path.stat().st_size == 0:
            raise no_rows(path)
        yield from reader(path) if complain is None else _readable_rows(reader, path, complain)
    except (OSError, EOFError, zlib.error) as error:
        hint = close_name(path) if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"{path}: cannot be read: {reason_of(error)}{hint}") from error


def no_rows(source: str | Path) -> DataError:
    """Make the error for a source without rows, which says whether it is an empty file."""
    path = Path(os.path.expanduser(source))
    empty = path.is_file() and path.stat().st_size == 0
    return DataError(f"{source}: is empty" if empty else f"{source}: holds no rows")


def valid_beside(source: str | Path) -> str | None:
    """Find the validation rows in a folder of training data; None: there are none."""
    folder = Path(os.path.expanduser(source))
    if str(source).startswith(HUB) or not folder.is_dir():
        return None
    files = files_of(folder, "valid", KINDS)
    if len(files) > 1:
        return f"{source}#valid"
    return str(files[0]) if files else None


def _readable_rows(
    reader: Reader, path: Path, complain: Callable[[str], None]
) -> Iterator[tuple[Origin, JsonObject]]:
    """Yield the rows of a file without those that cannot be read."""
    if reader is json_rows:
        yield from json_rows(path, complain)
        return
    try:
        yield from csv_rows(path, complain) if reader is csv_rows else reader(path)
    except DataError as error:
        complain(str(error))


def _paragraphs(path: Path) -> Iterator[tuple[Origin, JsonObject]]:
    """Yield (origin, row) for each paragraph of a plain text.

    Raises:
        DataError: it holds rows of JSON instead.
    """
    paragraph: list[str] = []
    length = number = 0
    with open_file(path) as file:
        refuse_json(file, path)
        for number, line in numbered_lines(file.readline, path):
            text = decoded(line, f"{path}:{number}", first=number == 1)
            if text.strip():
                paragraph.append(text)
                length += len(line) + _TEXT_OVERHEAD
                if length > LONGEST:
                    raise too_long(f"{path}:{number + 1 - len(paragraph)}")
            elif paragraph:
                yield f"{path}:{number - len(paragraph)}", {"text": "".join(paragraph).strip()}
                paragraph, length = [], 0
        if paragraph:
            yield f"{path}:{number + 1 - len(paragraph)}", {"text": "".join(paragraph).strip()}


_READERS: dict[str, Reader] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
    ".txt": _paragraphs,
}


def _hub(source: str) -> Iterator[tuple[Origin, JsonObject]]:
    import datasets

    name, _, split = source.removeprefix(HUB).partition("#")
    name, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{source}:row {number}", without_empty(row, f"{source}:row {number}")
    except DataError:
        raise
    except Exception as error:  # the hub's client raises errors of many types
        raise DataError(f"{source}: cannot be read: {reason_of(error)}") from error
