"""Every kind of file gives the same rows, each with its line."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forty2.data.formats import read_pairs, read_records, to_row
from forty2.data.sources import dumps, read_rows, valid_beside
from forty2.errors import DataError

PAIRS = [
    {"prompt": "q1", "chosen": "a, b", "rejected": "ü\n„b“", "kind": "x"},
    {"prompt": "q2", "chosen": "c", "rejected": "d", "kind": "y"},
]


def as_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(PAIRS[0]))
        writer.writeheader()
        writer.writerows(PAIRS)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "pairs.jsonl": lambda p: p.write_text(dumps(PAIRS), "utf-8"),
    "pairs.jsonl.gz": lambda p: p.write_bytes(gzip.compress(dumps(PAIRS).encode())),
    "pairs.json": lambda p: p.write_text(json.dumps(PAIRS, indent=1), "utf-8"),
    "pairs.csv": as_csv,
    "pairs.parquet": lambda p: pq.write_table(pa.Table.from_pylist(PAIRS), p),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_pairs(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    for source in (tmp_path / name, tmp_path):  # the file, and the folder it lies in
        records = read_pairs(source)
        assert [to_row(record) for record in records] == PAIRS
    assert len({record.origin for record in records}) == 2
    assert all(record.origin.startswith(str(tmp_path / name)) for record in records)


def test_a_hub_data_set_is_streamed(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "train.parquet")
    rows = list(read_rows(f"hub:{tmp_path}#train"))
    assert [row for _, row in rows] == PAIRS
    assert rows[1][0].endswith(":row 2")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(f"hub:{tmp_path}#nothing"))


def test_json_and_csv_rows_know_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n {"text": "a"},\n\n {"text": "b"},\n {"text": 3}\n]')
    assert [origin for origin, _ in read_rows(path)] == [f"{path}:{n}" for n in (2, 4, 5)]
    with pytest.raises(DataError, match=r"rows.json:5: text must be text"):
        read_records(path)
    path.write_text('[\n {"text": "a"}\n {"text": "b"}]')
    with pytest.raises(DataError, match=r"rows.json:2: after this row"):
        read_records(path)
    table = tmp_path / "rows.csv"
    table.write_text('prompt,completion\n"q\n1",a\nq2\n')
    with pytest.raises(DataError, match=r"rows.csv:4: has another number of cells"):
        read_records(table)


def test_paragraphs_of_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("one\ntwo\n\n\nthree\n")
    rows = list(read_rows(path))
    assert rows == [(f"{path}:1", {"text": "one\ntwo"}), (f"{path}:5", {"text": "three"})]


def test_a_folder_trains_on_its_train_file_and_validates_on_the_other(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl", "other.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    (tmp_path / "manifest.json").write_text("{}")
    assert [row["text"] for _, row in read_rows(tmp_path)] == ["train.jsonl"]
    assert valid_beside(tmp_path) == str(tmp_path / "valid.jsonl")


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "broken.parquet", "broken.jsonl.gz"])
def test_what_cannot_be_read_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1 not really")
    with pytest.raises(DataError) as error:
        read_records(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)
