"""Rows from wherever they are: files of several kinds, folders, data sets of the hub.

    .jsonl .ndjson .json .parquet .csv .txt, each also gzipped (.gz) except Parquet
    FOLDER                           its train file, or every data file in it
    hub:OWNER/NAME[:CONFIG][#SPLIT]  streamed through `datasets`; SPLIT is train if absent

Each row comes with its origin, "file:line" where the kind of file has lines, so that any later
fault can name it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from forty2.errors import DataError
from forty2.recipe import HUB

KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".txt")
MANIFEST = "manifest.json"
_LONGEST = 32_000_000
"""Bytes of a line: no row is longer, and what unpacks to more must not fill the memory."""

Row = dict[str, Any]
Origin = str
Reader = Callable[[Path], Iterator[tuple[Origin, Row]]]


def read_rows(
    source: str | Path, complain: Callable[[str], None] | None = None
) -> Iterator[tuple[Origin, Row]]:
    """(origin, row) of everything in a file, a folder or a hub data set.

    Args:
        complain: told of each line of JSON Lines that is no row, which is then passed over;
            None: the first one raises.

    Raises:
        DataError: it cannot be read, or holds something that is no row; names file and line.
    """
    if str(source).startswith(HUB):
        yield from _hub(str(source))
        return
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        for file in _files(path):
            yield from read_rows(file, complain)
        return
    kind = _kind(path)
    reader = _READERS.get(kind)
    if reader is None:
        raise DataError(
            f"{path}: rows of kind {kind or 'no suffix'} are not read; use {', '.join(KINDS)}"
        )
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is no file but a pipe or a device; save it to a file first")
        yield from reader(path) if complain is None else _passing_over(reader, path, complain)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {_reason(error)}") from error


def valid_beside(source: str | Path) -> str | None:
    """The validation file in a folder of training data, if there is one."""
    if str(source).startswith(HUB) or not Path(os.path.expanduser(source)).is_dir():
        return None
    valid = [p for p in _listed(Path(os.path.expanduser(source))) if _stem(p) == "valid"]
    return str(valid[0]) if valid else None


def dumps(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON Lines, the same bytes on every platform."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# --- kinds of file --------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[Origin, Row]]:
    with _open(path) as file:
        for number, line in _lines(file, path):
            yield from _json_line(line, number, path)


def _json_line(line: bytes, number: int, path: Path) -> Iterator[tuple[Origin, Row]]:
    if line.strip():
        origin = f"{path}:{number}"
        text = _text(line, origin, first=number == 1)
        value = _parsed(text, origin, whole=line.endswith(b"\n"))
        yield origin, _row(value, origin, escaped="\\u" in text)


def _passing_over(
    reader: Reader, path: Path, complain: Callable[[str], None]
) -> Iterator[tuple[Origin, Row]]:
    """The rows of a file without those that cannot be read."""
    if reader is not _json_lines:
        try:
            yield from reader(path)
        except DataError as error:
            complain(str(error))
        return
    with _open(path) as file:
        for number, line in _lines(file, path):
            try:
                yield from _json_line(line, number, path)
            except DataError as error:
                complain(str(error))


def _json(path: Path) -> Iterator[tuple[Origin, Row]]:
    """An array of rows, decoded one by one so that each knows its line."""
    with _open(path) as file:
        text = _text(file.read(), str(path))
    start = re.match(r"\s*\[\s*", text)
    if start is None:
        raise DataError(f"{path}:1: not a JSON array of rows")
    decoder = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_object)
    position, line = start.end(), 1 + text.count("\n", 0, start.end())
    while not text.startswith("]", position):
        origin = f"{path}:{line}"
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{origin}: not JSON: {_why(error)}") from error
        yield origin, _row(value, origin, escaped="\\u" in text[position:end])
        separator = re.compile(r"\s*(,\s*|(?=\]))").match(text, end)
        if separator is None:
            raise DataError(f"{origin}: after this row there must come a comma or the end")
        line += text.count("\n", position, separator.end())
        position = separator.end()


def _csv(path: Path) -> Iterator[tuple[Origin, Row]]:
    with _open(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        rows = iter(lambda: text.readline(_LONGEST), "")
        reader = csv.DictReader(rows, restkey="", strict=True)
        header = _header(reader, path)
        if twice := next((name for name in header if header.count(name) > 1), None):
            raise DataError(f"{path}:1: column {twice!r} is there twice; rename one")
        while True:
            origin = f"{path}:{reader.line_num + 1}"
            try:
                row = next(reader)
            except StopIteration:
                return
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"{origin}: not readable as CSV in UTF-8: {error}") from error
            if "" in row or None in row.values():
                raise DataError(f"{origin}: has another number of cells than the header")
            yield origin, {key: _cell(value, origin) for key, value in row.items()}


def _header(reader: csv.DictReader[str], path: Path) -> list[str]:
    try:
        return list(reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}:1: not readable as CSV in UTF-8: {error}") from error


def _cell(value: str, origin: Origin) -> Any:
    """A cell's value: messages are written as JSON in it."""
    return _parsed(value, origin) if value.startswith(("[{", "{")) else value


def _parquet(path: Path) -> Iterator[tuple[Origin, Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:row {number}", _present(row)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {_reason(error)}") from error


def _plain(path: Path) -> Iterator[tuple[Origin, Row]]:
    """Paragraphs, each a text of its own."""
    paragraph: list[str] = []
    with _open(path) as file:
        number = 0
        for number, line in _lines(file, path):
            text = _text(line, f"{path}:{number}", first=number == 1)
            if text.strip():
                paragraph.append(text)
            elif paragraph:
                yield f"{path}:{number - len(paragraph)}", {"text": "".join(paragraph).strip()}
                paragraph = []
        if paragraph:
            yield f"{path}:{number + 1 - len(paragraph)}", {"text": "".join(paragraph).strip()}


_READERS: dict[str, Reader] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _plain,
}


def _hub(source: str) -> Iterator[tuple[Origin, Row]]:
    import datasets

    name, _, split = source.removeprefix(HUB).partition("#")
    name, _, config = name.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{source}:row {number}", _present(row)
    except DataError:
        raise
    except Exception as error:  # the hub's client raises what its many parts raise
        raise DataError(f"{source}: cannot be read: {_reason(error)}") from error


def _files(folder: Path) -> list[Path]:
    """The train file of a folder, else every data file in it but the validation file."""
    found = [p for p in _listed(folder) if _stem(p) != "valid"]
    if not found:
        raise DataError(f"{folder}: holds no data file ({', '.join(KINDS)})")
    return [p for p in found if _stem(p) == "train"] or found


def _listed(folder: Path) -> list[Path]:
    files = (p for p in folder.iterdir() if p.is_file() and p.name != MANIFEST)
    return sorted(p for p in files if _kind(p) in KINDS)


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST), b""), 1):
        if len(line) == _LONGEST:
            raise DataError(
                f"{path}:{number}: longer than {_LONGEST:,} bytes; put each row on its own line"
            )
        yield number, line


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _text(data: bytes, origin: Origin, *, first: bool = True) -> str:
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1}" + (" of the line" if ":" in Path(origin).name else "")
        raise DataError(f"{origin}: not UTF-8 ({where}); save the file as UTF-8") from error


def _parsed(text: str, origin: Origin, *, whole: bool = True) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        cut = "" if whole else "; the last line is cut off"
        raise DataError(f"{origin}: not a JSON object: {_why(error)}{cut}") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object; a key given twice would hide what is under the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} is there twice; remove one")
    return found


def _why(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(getattr(error, "msg", "") or error).split("; use sys.")[0]


def _row(value: Any, origin: Origin, *, escaped: bool) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{origin}: not a JSON object but {type(value).__name__}")
    if escaped:
        try:
            dumps([value]).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{origin}: holds half of a surrogate pair, which is not valid Unicode"
            ) from error
    return value


def _present(row: Mapping[str, Any]) -> Row:
    """A row of a table without its empty columns, in messages too."""
    return {key: _pruned(value) for key, value in row.items() if value is not None}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _pruned(v) for k, v in value.items() if v is not None}
    return [_pruned(v) for v in value] if isinstance(value, list) else value


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
