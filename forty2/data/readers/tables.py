"""Reading of rows from tables: CSV, Parquet and Arrow files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.data import row_keys
from forty2.data.readers.files import (
    LONGEST,
    check_unpacked,
    not_utf8,
    numbered_lines,
    open_file,
    pointer,
    reason_of,
    too_long,
)
from forty2.data.readers.json_rows import parsed, repeated
from forty2.errors import DataError
from forty2.files import JsonObject, is_lfs_pointer

if TYPE_CHECKING:
    import pyarrow as pa

_VALUE = re.compile(r"true|false|(?:0|[1-9]\d{0,8})(?:\.\d{1,9})?", re.IGNORECASE)
"""Truth values and numbers in a CSV file's columns of them."""
_SEPARATOR = re.compile(r"sep=(.)\s*", re.IGNORECASE)
"""A first line that tells Excel the separator."""
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_PYTHON = re.compile(r"\[\{'(?:role|content|from|value)':")
"""The beginning of messages as Python prints them, which is what pandas writes into a cell."""
_ESCAPED = re.compile("[\udc80-\udcff]")
"""A byte that is not UTF-8, as `surrogateescape` decodes it."""
_MANY, _FEW = 1024, 64
"""Rows of a batch: of small columns, and of those that may be large."""
_UNNAMED = "Unnamed: "
"""Beginning of the name of a column without one, as pandas calls it."""


def csv_rows(
    path: Path, complain: Callable[[str], None] | None = None
) -> Iterator[tuple[str, JsonObject]]:
    """Yield (origin, row) for each row of a CSV file, whose first line names the columns.

    Columns may be separated by commas, semicolons, tabs or bars. A column without a name is called
    "Unnamed: N", as pandas calls it: it is usually an index.

    Args:
        complain: called with a message about each row that does not fit its header or holds a cell
            that cannot be read; None: raise it.
    """
    with (
        open_file(path) as file,
        io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        lines = _checked_lines(text, path)
        usual = "\t" if ".tsv" in map(str.lower, path.suffixes) else ","
        above, first, separator = _header(lines, usual)
        spaced = f"{separator} " in first
        reader = csv.reader(
            chain([first], lines), delimiter=separator, skipinitialspace=spaced, strict=True
        )
        names: list[str] | None = None
        while True:
            origin = f"{path}:{above + reader.line_num + 1}"
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(
                    f"{origin}: not readable as CSV in UTF-8: {error} (separated by "
                    f"{_SEPARATORS.get(separator, repr(separator))})"
                ) from error
            if not cells:
                continue
            if names is None:
                names = _names(cells, path)
                continue
            try:
                row = _csv_row(names, cells, origin, separator)
            except DataError as error:
                if complain is None:
                    raise
                complain(str(error))
            else:
                yield origin, row


def _csv_row(names: list[str], cells: list[str], origin: str, separator: str) -> JsonObject:
    """Read the cells of a row, without weights and cells of unnamed columns that are empty."""
    if len(cells) != len(names):
        raise DataError(
            f"{origin}: has another number of cells than the header ({len(cells)}, not "
            f"{len(names)}; separated by {_SEPARATORS.get(separator, repr(separator))})"
        )
    return {
        name: _cell(name, cell, origin)
        for name, cell in zip(names, cells, strict=True)
        if cell.strip() or not (name.startswith(_UNNAMED) or name == row_keys.WEIGHT)
    }


def _checked_lines(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    """Yield the lines of a file whose bytes that are not UTF-8 were escaped; refuse the first."""
    for number, line in numbered_lines(text.readline, path):
        if not line.isascii() and (found := _ESCAPED.search(line)):
            at = len(line[: found.start()].encode(errors="surrogateescape"))
            where = f"byte {at + 1} of the line"
            raise not_utf8(f"{path}:{number}", where, ord(found[0]) - 0xDC00)
        yield line


def _header(lines: Iterator[str], usual: str) -> tuple[int, str, str]:
    """Find the line that names the columns: the first that is neither blank nor an Excel's `sep=;`.

    Returns:
        The number of lines above it, the line, and the separator.
    """
    above, told = 0, None
    for line in lines:
        if told is None and (found := _SEPARATOR.fullmatch(line)):
            told = found[1]
        elif line.strip():
            return above, line, told or _separator(line, usual)
        above += 1
    return above, "", usual


def _separator(header: str, usual: str) -> str:
    """Choose the separator by which a header names the most known columns, then the usual one."""

    def fit(separator: str) -> tuple[int, bool, int]:
        try:
            cells = next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])
        except csv.Error:  # a cell above the limit
            return 0, False, 0
        known = len(row_keys.ALL & {cell.strip() for cell in cells})
        return known, separator == usual and len(cells) > 1, len(cells)

    return max([usual, *_SEPARATORS], key=fit)


def _names(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() or f"{_UNNAMED}{i}" for i, cell in enumerate(cells)]
    if twice := repeated(names):
        raise DataError(f"{path}:1: column {twice!r} is there twice; rename one")
    return names


def _cell(key: str, value: str, origin: str) -> object:
    """Read a cell: text, but for verdicts, weights, and lists in columns that hold nothing else."""
    if key in row_keys.VALUES and _VALUE.fullmatch(value.strip()):
        return json.loads(value.lower())
    if not value.startswith(("[", "{")):
        return value
    if _PYTHON.match(value):
        raise DataError(
            f"{origin}: {key} holds messages as Python prints them, not as JSON; save the table as "
            'JSON Lines: table.to_json("rows.jsonl", orient="records", lines=True)'
        )
    if key in row_keys.LISTS:
        return parsed(value, f"{origin}: {key}")
    return value


def parquet_rows(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Yield (origin, row) for each row of a Parquet file, read batch by batch.

    A column can repeat a small dictionary many times, so its size is checked before it is unpacked.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = unpacked = 0
    if is_lfs_pointer(path):
        raise pointer(path)
    try:
        about = pq.read_metadata(path)
        groups = [about.row_group(n) for n in range(about.num_row_groups)]
        columns = [[group.column(n) for group in groups] for n in range(about.num_columns)]
        sizes = [[chunk.total_uncompressed_size for chunk in chunks] for chunks in columns]
        check_unpacked(sum(map(sum, sizes)), path)
        written = about.schema.to_arrow_schema()
        small = [n for n, chunks in enumerate(sizes) if max(chunks, default=0) <= LONGEST]
        as_dictionaries = [about.schema.column(n).path for n in small]
        size = _MANY if len(small) == len(sizes) else _FEW
        for batch in _batches(path, as_dictionaries, size):
            for part in _parts(batch, f"{path}:row {number + 1}"):
                unpacked += _size(part)
                check_unpacked(unpacked, path)
                for row in _unpacked(part, written):
                    number += 1
                    yield f"{path}:row {number}", without_empty(row, f"{path}:row {number}")
    except DataError:
        raise
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {reason_of(error)}") from error
    except (pa.ArrowException, ValueError, OverflowError) as error:  # a value that Python lacks
        raise DataError(f"{path}:row {number + 1}: cannot be read: {reason_of(error)}") from error


def _batches(path: Path, as_dictionaries: Sequence[str], size: int) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a Parquet file, with these columns as dictionaries where Arrow can read them so.

    It cannot where a nested column has dictionary pages and others in one row group, as writers leave it
    when a dictionary grows too large. From there on nested columns are read plainly, a few rows at a time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = 0
    try:
        with pq.ParquetFile(path, read_dictionary=as_dictionaries) as file:
            for batch in file.iter_batches(size):
                yield batch
                done += len(batch)
        return
    except pa.ArrowNotImplementedError:
        plain = [name for name in as_dictionaries if "." not in name]
        if len(plain) == len(as_dictionaries):
            raise
    passed = 0
    with pq.ParquetFile(path, read_dictionary=plain) as file:
        for batch in file.iter_batches(_FEW):
            passed += len(batch)
            if passed > done:
                yield batch.slice(max(0, len(batch) - (passed - done)))


def arrow_rows(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Yield (origin, row) for each row of an Arrow file or stream, as `datasets` saves them."""
    import pyarrow as pa

    number = 0
    if is_lfs_pointer(path):
        raise pointer(path)
    try:
        with pa.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            opened = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            numbers = range(opened.num_record_batches) if is_file else ()
            for batch in map(opened.get_batch, numbers) if is_file else opened:
                batch.validate(full=True)
                for part in _parts(batch, f"{path}:row {number + 1}"):
                    for row in part.to_pylist():
                        number += 1
                        yield f"{path}:row {number}", without_empty(row, f"{path}:row {number}")
    except DataError:
        raise
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not an Arrow file: {reason_of(error)}") from error
    except (pa.ArrowException, ValueError, OverflowError) as error:  # a value that Python lacks
        raise DataError(f"{path}:row {number + 1}: cannot be read: {reason_of(error)}") from error


def _parts(batch: pa.RecordBatch, origin: str) -> Iterator[pa.RecordBatch]:
    """Cut a batch into parts, none of more bytes than a row may have."""
    if _size(batch) <= LONGEST:
        yield batch
    elif len(batch) == 1:
        raise too_long(origin)
    else:
        half = len(batch) // 2
        yield from _parts(batch.slice(0, half), origin)
        yield from _parts(batch.slice(half), origin)


def _unpacked(batch: pa.RecordBatch, written: pa.Schema) -> list[JsonObject]:
    """Return the rows of a batch that was read with dictionaries, whose columns had other types.

    Casting the dictionaries first is three times as fast, but Arrow cannot cast to views.
    """
    import pyarrow as pa

    try:
        return list(batch.cast(written).to_pylist())
    except pa.ArrowNotImplementedError:
        return list(batch.to_pylist())


def _size(table: pa.RecordBatch | pa.Array) -> int:
    """Compute the bytes of a table's values with its dictionaries and views unpacked."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(table, pa.RecordBatch):
        return sum(map(_size, table.columns))
    if isinstance(table, pa.DictionaryArray):
        return int(pc.sum(_sizes(table.dictionary).take(table.indices)).as_py() or 0)
    if isinstance(table, pa.StructArray):
        return sum(map(_size, table.flatten()))
    if isinstance(table, pa.ListArray | pa.LargeListArray):
        begin, end = table.offsets[0].as_py(), table.offsets[-1].as_py()
        return _size(table.values.slice(begin, end - begin))
    if isinstance(table, pa.ListViewArray | pa.LargeListViewArray):
        places = zip(table.offsets.to_pylist(), table.sizes.to_pylist(), strict=True)
        return sum(_size(table.values.slice(begin, size)) for begin, size in places)
    if isinstance(table, pa.FixedSizeListArray):
        return _size(table.flatten())
    if isinstance(table, pa.StringViewArray | pa.BinaryViewArray):
        return int(pc.sum(_sizes(table)).as_py() or 0)
    return int(table.nbytes)


def _sizes(values: pa.Array) -> pa.Array:
    """Compute the bytes of each value of an array."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(values, pa.StringViewArray | pa.BinaryViewArray):
        # A view is four numbers, the first of them the length of its text.
        views = np.frombuffer(values.buffers()[1], np.int32).reshape(-1, 4)
        return pa.array(views[values.offset : values.offset + len(values), 0], pa.int64())
    if pa.types.is_primitive(values.type):
        return pa.repeat(pa.scalar(values.type.bit_width // 8, pa.int64()), len(values))
    try:
        return pc.binary_length(values)
    except pa.ArrowNotImplementedError:
        return pa.array([_size(values.slice(n, 1)) for n in range(len(values))], pa.int64())


def without_empty(row: Mapping[str, object], origin: str) -> JsonObject:
    """Turn a row of a table into JSON values, without empty columns and empty keys of messages.

    Raises:
        DataError: it holds a value that JSON cannot write.
    """
    return {k: _json_value(v, f"{origin}: {k!r}") for k, v in row.items() if not _is_empty(v)}


def _is_empty(value: object) -> bool:
    """Return whether a table's cell holds no value, or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _json_value(value: object, where: str) -> object:
    if isinstance(value, dict):
        return {k: _json_value(v, where) for k, v in value.items() if not _is_empty(v)}
    if isinstance(value, list | tuple):
        return [_json_value(v, where) for v in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    kind = str(value) if isinstance(value, float) else f"a value of type {type(value).__name__}"
    raise DataError(f"{where} holds {kind}, which JSON cannot hold; leave the column out")
