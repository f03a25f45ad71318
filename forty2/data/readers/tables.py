"""Reading of rows from tables: CSV and Parquet files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.data.readers.files import (
    LONGEST,
    check_unpacked,
    numbered_lines,
    open_file,
    reason_of,
    too_long,
)
from forty2.data.readers.json_rows import parsed, repeated
from forty2.errors import DataError
from forty2.files import JsonObject

if TYPE_CHECKING:
    import pyarrow as pa

_VALUES = ("label", "kto_tag", "weight")
_VALUE = re.compile(r"true|false|(?:0|[1-9]\d{0,8})(?:\.\d{1,9})?", re.IGNORECASE)
"""Columns of a CSV file that may hold something else than text, and the values recognised in them."""


def csv_rows(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Yield (origin, row) for each row of a CSV file, whose first line names the columns."""
    with open_file(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
        rows = (line for _, line in numbered_lines(text.readline, path))
        reader = csv.DictReader(rows, restkey="", strict=True)
        if twice := repeated(_header(reader, path)):
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


def _cell(key: str, value: str, origin: str) -> object:
    """Read a cell: messages are written in it as JSON; verdicts and weights are not text."""
    if key in _VALUES and _VALUE.fullmatch(value.strip()):
        return json.loads(value.lower())
    return parsed(value, origin) if value.startswith(("[{", "{")) else value


def parquet_rows(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Yield (origin, row) for each row of a Parquet file, read batch by batch.

    A column can repeat a small dictionary many times, so its size is checked before it is unpacked.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = unpacked = 0
    try:
        about = pq.read_metadata(path)
        groups = [about.row_group(n) for n in range(about.num_row_groups)]
        columns = [[group.column(n) for group in groups] for n in range(about.num_columns)]
        sizes = [[chunk.total_uncompressed_size for chunk in chunks] for chunks in columns]
        check_unpacked(sum(map(sum, sizes)), path)
        written = about.schema.to_arrow_schema()
        small = [n for n, chunks in enumerate(sizes) if max(chunks, default=0) <= LONGEST]
        as_dictionaries = [about.schema.column(n).path for n in small]
        with pq.ParquetFile(path, read_dictionary=as_dictionaries) as file:
            for batch in file.iter_batches(1024 if len(small) == len(sizes) else 64):
                for part in _parts(batch, f"{path}:row {number + 1}"):
                    unpacked += _size(part)
                    check_unpacked(unpacked, path)
                    for row in part.cast(written).to_pylist():
                        number += 1
                        yield f"{path}:row {number}", without_empty(row, f"{path}:row {number}")
    except DataError:
        raise
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {reason_of(error)}") from error
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


def _size(table: pa.RecordBatch | pa.Array) -> int:
    """Compute the bytes of a table's values with its dictionaries unpacked."""
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
