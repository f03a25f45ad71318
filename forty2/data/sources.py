"""Rows from wherever they are: files of several kinds, folders, data sets of the hub.

    .jsonl .ndjson .json .parquet .csv .txt, each also gzipped (.gz) except Parquet
    FOLDER                           its train file, or every data file in it
    hub:OWNER/NAME[:CONFIG][#SPLIT]  streamed through `datasets`; SPLIT is train if absent

Each row comes with its origin, "file:line" where the kind of file has lines, so that any later
fault can name it.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, AnyStr, BinaryIO

from forty2.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".txt")
MANIFEST = "manifest.json"
BUILTIN, HUB = "builtin:", "hub:"
"""Prefixes of sources that are no files: our own sets by name, and the hub's."""
_VALUES = ("label", "kto_tag", "weight")
_VALUE = re.compile(r"true|false|(?:0|[1-9]\d{0,8})(?:\.\d{1,9})?", re.IGNORECASE)
"""Columns of a table that hold no text, and what is then in them."""
_LONGEST = 8_000_000
"""Bytes of a row: none is longer, and what unpacks to more must not fill the memory."""
_OF_TEXT = 50
"""Bytes of memory that a text takes beside its own."""
_BLANK = 1_000_000
"""Bytes without a row between two rows."""
_DEEPEST = 100
"""Values within values: nothing that anyone trains on, and what writes rows recurses, too."""
_UNPACKED, _RATIO = 64_000_000, 200
"""Bytes that any packed file may unpack to, and how many for each of its own. Text packs to a
tenth; a bomb, to a thousandth."""

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
        for number, line in _lines(file.readline, path):
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
        for number, line in _lines(file.readline, path):
            try:
                yield from _json_line(line, number, path)
            except DataError as error:
                complain(str(error))


def _json(path: Path) -> Iterator[tuple[Origin, Row]]:
    """An array of rows, decoded one by one: each knows its line, and no other is in memory."""
    with _open(path) as file:
        window = _Window(file, path)
        if window.peek() != "[":
            raise DataError(f"{path}:1: not a JSON array of rows")
        window.at += 1
        while window.peek() != "]":
            origin = window.origin
            value, text = window.value()
            yield origin, _row(value, origin, escaped="\\u" in text)
            after = window.peek()
            if after == ",":
                window.at += 1
            elif after != "]":
                raise DataError(f"{origin}: after this row there must come a comma or the end")
        window.at += 1
        if window.peek():
            raise DataError(f"{window.origin}: the array ends before this; put all rows into one")


class _Window:
    """The part of a JSON file that is being read."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.at = 0
        self._text, self._line = "", 1
        self._file, self._path = file, path
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode

    @property
    def origin(self) -> Origin:
        return f"{self._path}:{self._line}"

    def peek(self) -> str:
        """The next character that is not blank, with `at` on it; "" at the end."""
        blank = 0
        while True:
            end = _BLANKS.match(self._text, self.at).end()  # type: ignore[union-attr]
            blank += end - self.at
            self._go(end)
            if end < len(self._text) or not self._grow():
                return self._text[self.at : self.at + 1]
            if blank > _BLANK:
                raise _too_blank(self.origin)

    def value(self) -> tuple[Any, str]:
        """The value at `at`, and how it was written; moves behind it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.at)
                written = self._text[self.at : end]
                _check_depth(value, written)
                self._go(end)
                return value, written
            except (ValueError, RecursionError) as error:
                cut = isinstance(error, json.JSONDecodeError) and (
                    error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                )
                if not cut or not self._grow():
                    raise DataError(f"{self.origin}: not JSON: {_why(error)}") from error

    def _go(self, end: int) -> None:
        self._line += self._text.count("\n", self.at, end)
        self.at = end

    def _grow(self) -> bool:
        """Read on, as much as there is yet to decode: so that all of it is decoded twice at most."""
        left = self._text[self.at :]
        if len(left) >= _LONGEST:
            raise _too_long(self.origin)
        data = self._file.read(max(len(left), 1 << 16))
        try:
            self._text, self.at = left + self._decode(data, not data), 0
        except UnicodeDecodeError as error:
            line = self._line + left.count("\n") + error.object[: error.start].count(b"\n")
            raise DataError(f"{self._path}:{line}: not UTF-8; save the file as UTF-8") from error
        return bool(data)


def _csv(path: Path) -> Iterator[tuple[Origin, Row]]:
    with _open(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        rows = (line for _, line in _lines(text.readline, path))
        reader = csv.DictReader(rows, restkey="", strict=True)
        if twice := _twice(_header(reader, path)):
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
            yield origin, {key: _cell(key, value, origin) for key, value in row.items()}


def _header(reader: csv.DictReader[str], path: Path) -> list[str]:
    try:
        return list(reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}:1: not readable as CSV in UTF-8: {error}") from error


def _cell(key: str, value: str, origin: Origin) -> Any:
    """A cell's value: messages are written as JSON in it; a verdict or weight is no text."""
    if key in _VALUES and _VALUE.fullmatch(value.strip()):
        return json.loads(value.lower())
    return _parsed(value, origin) if value.startswith(("[{", "{")) else value


def _parquet(path: Path) -> Iterator[tuple[Origin, Row]]:
    """Rows by the batch; what a column's dictionary repeats is written out only if it is little."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = unpacked = 0
    try:
        about = pq.read_metadata(path)
        groups = [about.row_group(n) for n in range(about.num_row_groups)]
        columns = [[group.column(n) for group in groups] for n in range(about.num_columns)]
        sizes = [[chunk.total_uncompressed_size for chunk in chunks] for chunks in columns]
        _check_unpacked(sum(map(sum, sizes)), path)
        written = about.schema.to_arrow_schema()
        # Few bytes may be many, repeated: those are read as they are kept. More are what they are.
        few = [n for n, chunks in enumerate(sizes) if max(chunks, default=0) <= _LONGEST]
        kept = [about.schema.column(n).path for n in few]
        with pq.ParquetFile(path, read_dictionary=kept) as file:
            for batch in file.iter_batches(1024 if len(kept) == len(sizes) else 64):
                for part in _parts(batch, f"{path}:row {number + 1}"):
                    unpacked += _size(part)
                    _check_unpacked(unpacked, path)
                    for row in part.cast(written).to_pylist():
                        number += 1
                        yield f"{path}:row {number}", _present(row, f"{path}:row {number}")
    except DataError:
        raise
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {_reason(error)}") from error
    except (pa.ArrowException, ValueError, OverflowError) as error:  # of a value that Python lacks
        raise DataError(f"{path}:row {number + 1}: cannot be read: {_reason(error)}") from error


def _parts(batch: pa.RecordBatch, origin: Origin) -> Iterator[pa.RecordBatch]:
    """A batch in parts of which none is longer than a row may be."""
    if _size(batch) <= _LONGEST:
        yield batch
    elif len(batch) == 1:
        raise _too_long(origin)
    else:
        half = len(batch) // 2
        yield from _parts(batch.slice(0, half), origin)
        yield from _parts(batch.slice(half), origin)


def _size(table: pa.RecordBatch | pa.Array) -> int:
    """Bytes of a table's values when those that a dictionary holds once are written out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(table, pa.RecordBatch):
        return sum(map(_size, table.columns))
    if isinstance(table, pa.DictionaryArray):
        return int(pc.sum(pc.binary_length(table.dictionary).take(table.indices)).as_py() or 0)
    if isinstance(table, pa.StructArray):
        return sum(map(_size, table.flatten()))
    if isinstance(table, pa.ListArray | pa.LargeListArray):
        begin, end = table.offsets[0].as_py(), table.offsets[-1].as_py()
        return _size(table.values.slice(begin, end - begin))
    return int(table.nbytes)


def _plain(path: Path) -> Iterator[tuple[Origin, Row]]:
    """Paragraphs, each a text of its own."""
    paragraph: list[str] = []
    length = 0
    with _open(path) as file:
        number = 0
        for number, line in _lines(file.readline, path):
            text = _text(line, f"{path}:{number}", first=number == 1)
            if text.strip():
                paragraph.append(text)
                length += len(line) + _OF_TEXT
                if length > _LONGEST:
                    raise _too_long(f"{path}:{number + 1 - len(paragraph)}")
            elif paragraph:
                yield f"{path}:{number - len(paragraph)}", {"text": "".join(paragraph).strip()}
                paragraph, length = [], 0
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
            yield f"{source}:row {number}", _present(row, f"{source}:row {number}")
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


def _lines(readline: Callable[[int], AnyStr], path: Path) -> Iterator[tuple[int, AnyStr]]:
    blank = number = 0
    while line := readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST:
            raise _too_long(f"{path}:{number}")
        blank = blank + len(line) if line.isspace() else 0
        if blank > _BLANK:
            raise _too_blank(f"{path}:{number}")
        yield number, line


def _too_long(origin: Origin) -> DataError:
    return DataError(
        f"{origin}: a row longer than {_LONGEST:,} bytes; cut it up, or end each row where it ends"
    )


def _too_blank(origin: Origin) -> DataError:
    return DataError(f"{origin}: nothing but blanks for {_BLANK:,} bytes; take them out")


def _open(path: Path) -> BinaryIO:
    return io.BufferedReader(_Unzipped(path), 1 << 17) if path.suffix == ".gz" else path.open("rb")


class _Unzipped(io.RawIOBase):
    """What a .gz file holds, as far as that is in proportion to the file."""

    def __init__(self, path: Path) -> None:
        self._file = gzip.open(path, "rb")  # closed with this  # noqa: SIM115
        self._path, self._done = path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._done += count
        _check_unpacked(self._done, self._path)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _check_unpacked(size: int, path: Path) -> None:
    if size > _UNPACKED and size > _RATIO * path.stat().st_size:
        raise DataError(
            f"{path}: unpacks to more than {_RATIO} times its size; if that is right, "
            "unpack it yourself and give JSON Lines"
        )


def _text(data: bytes, origin: Origin, *, first: bool = True) -> str:
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1}" + (" of the line" if ":" in Path(origin).name else "")
        raise DataError(f"{origin}: not UTF-8 ({where}); save the file as UTF-8") from error


def _parsed(text: str, origin: Origin, *, whole: bool = True) -> Any:
    try:
        value = _DECODER.decode(text)
        _check_depth(value, text)
        return value
    except (ValueError, RecursionError) as error:
        cut = "" if whole else "; the last line is cut off"
        raise DataError(f"{origin}: not a JSON object: {_why(error)}{cut}") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def unique_keys(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object; a key given twice would hide what is under the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{_twice(key for key, _ in pairs)!r} is there twice; remove one")
    return found


_DECODER = json.JSONDecoder(
    parse_constant=_no_number, parse_float=_number, object_pairs_hook=unique_keys
)
_BLANKS = re.compile(r"[ \t\r\n]*")


def _twice(names: Iterable[str]) -> str | None:
    """The first name that is there more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _check_depth(value: Any, text: str) -> None:
    if text.count("{") + text.count("[") <= _DEEPEST:
        return
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
    if level:
        raise RecursionError


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


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


def _present(row: Mapping[str, Any], origin: Origin) -> Row:
    """A row of a table without its empty columns, in messages too."""
    return {k: _pruned(v, f"{origin}: {k!r}") for k, v in row.items() if not _missing(v)}


def _missing(value: Any) -> bool:
    """Whether a table's cell is empty: it has no value, or the number that is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _pruned(value: Any, where: str) -> Any:
    """A value as JSON has it, without what is empty in objects."""
    if isinstance(value, dict):
        return {k: _pruned(v, where) for k, v in value.items() if not _missing(v)}
    if isinstance(value, list | tuple):
        return [_pruned(v, where) for v in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if value is None or isinstance(value, str | int) or _finite(value):
        return value
    raise DataError(f"{where} holds {_named(value)}, which JSON cannot; leave the column out")


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _named(value: Any) -> str:
    return str(value) if isinstance(value, float) else f"a value of type {type(value).__name__}"


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
