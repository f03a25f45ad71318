"""Every kind of file gives the same rows, each with its line."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from datetime import date
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


def as_table(separator: str, encoding: str) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, list(PAIRS[0]), delimiter=separator)
            writer.writeheader()
            writer.writerows(PAIRS)

    return write


def as_arrow(path: Path, new: Callable[..., Any] = pa.ipc.new_file) -> None:
    table = pa.Table.from_pylist(PAIRS)
    with new(path, table.schema) as writer:
        writer.write_table(table)


def wrapped(indent: int | None, key: str = "data", **beside: Any) -> Callable[[Path], Any]:
    return lambda p: p.write_text(json.dumps({**beside, key: PAIRS}, indent=indent), "utf-8")


def encoded(encoding: str) -> Callable[[Path], Any]:
    return lambda p: p.write_bytes(dumps(PAIRS).encode(encoding))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "pairs.jsonl": lambda p: p.write_text(dumps(PAIRS), "utf-8"),
    "pairs.jsonl.gz": lambda p: p.write_bytes(gzip.compress(dumps(PAIRS).encode())),
    "pairs.json": lambda p: p.write_text(json.dumps(PAIRS, indent=1), "utf-8"),
    "pairs.csv": as_csv,
    "pairs.parquet": lambda p: pq.write_table(pa.Table.from_pylist(PAIRS), p),
    "pairs.arrow": as_arrow,
    "stream.arrow": lambda p: as_arrow(p, pa.ipc.new_stream),
    "pairs.tsv": as_table("\t", "utf-8"),
    "semicolons.csv": as_table(";", "utf-8-sig"),
    "bars.csv": as_table("|", "utf-8"),
    "tabs.csv": as_table("\t", "utf-16"),
    "commas.tsv": as_table(",", "utf-16-be"),
    "UPPER.CSV": as_table(",", "utf-8"),
    "lines.json": lambda p: p.write_text(dumps(PAIRS), "utf-8"),
    "array.jsonl": lambda p: p.write_text(json.dumps(PAIRS), "utf-8"),
    "indented.jsonl": lambda p: p.write_text(json.dumps(PAIRS, indent=1), "utf-8"),
    "objects.json": lambda p: p.write_text("".join(json.dumps(r, indent=1) for r in PAIRS)),
    "wrapped.json": wrapped(None),
    "wrapped.jsonl": wrapped(None, version=1),
    "wrapped.json.gz": lambda p: p.write_bytes(gzip.compress(json.dumps({"d": PAIRS}).encode())),
    "indented.json": wrapped(1, version="1.0", about={"a": [1]}),
    "export.json": wrapped(2, "tickets", exported="2026-11-01", of={"shop": "x"}),
    "export in a line.json": wrapped(None, "tickets", exported="2026-11-01", count=3),
    "lists.json": wrapped(2, "tickets", columns=["a", 1], years=[], nested=[[1]]),
    "lists in a line.json": wrapped(None, "tickets", columns=["a", 1], years=[], nested=[[1]]),
    "utf16.jsonl": encoded("utf-16"),
    "utf16le.jsonl": encoded("utf-16-le"),
    "utf16be.json": encoded("utf-16-be"),
    "utf32.jsonl": encoded("utf-32"),
    "mark.jsonl": encoded("utf-8-sig"),
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


def test_a_text_in_a_table_is_text_even_if_it_is_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    replies = ['{"a": 1}', '[{"name": "f"}]', "[1]", "{not json", '{"role": "x"}']
    rows = [{"prompt": "q", "completion": reply} for reply in replies]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    assert [row for _, row in read_rows(path)] == rows


def test_structure_in_a_table_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["messages", "tools", "prompt", "label"])
        prompt = json.dumps(messages[:1])
        writer.writerow([json.dumps(messages), json.dumps(tools), prompt, "1"])
    ((_, row),) = read_rows(path)
    assert row == {"messages": messages, "tools": tools, "prompt": prompt, "label": 1}


def test_the_header_of_a_table_may_lie_below_blank_lines_and_excel_s_separator(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.csv"
    for above, separator in (("sep=;\n", ";"), ("\n\n", ";"), ("\nsep=|\n\n", "|"), ("", ",")):
        lines = (
            separator.join(cells) for cells in (("prompt", "completion"), ("q", "a"), ("r", "b"))
        )
        path.write_text(above + "\n".join(lines))
        line = above.count("\n") + 2
        assert list(read_rows(path)) == [
            (f"{path}:{line}", {"prompt": "q", "completion": "a"}),
            (f"{path}:{line + 1}", {"prompt": "r", "completion": "b"}),
        ]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow", "txt", "json"])
def test_a_pointer_of_git_lfs_is_said(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    with pytest.raises(DataError, match=rf"rows\.{kind}: is a pointer of Git LFS"):
        list(read_rows(path))


def test_an_empty_cell_of_a_weight_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,weight\nq,a,\nr,b,2\n")
    assert [record.meta.get("weight") for record in read_records(path)] == [None, 2]


def test_an_index_without_a_name_is_kept_apart_and_ignored(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(",prompt,completion,\n0,q,a,\n1,r,b,\n")
    rows = [row for _, row in read_rows(path)]
    assert rows[1] == {"Unnamed: 0": "1", "prompt": "r", "completion": "b"}
    assert [dict(record.meta) for record in read_records(path)] == [
        {"Unnamed: 0": "0"},
        {"Unnamed: 0": "1"},
    ]


@pytest.mark.parametrize(
    ("header", "separator"),
    [
        ("prompt,completion", ","),
        ("prompt;completion,note", ";"),
        ("a;b;prompt", ";"),
        ("text", ","),
        ("one|two", "|"),
        ("prompt, completion", ","),
    ],
)
def test_the_header_names_the_separator(header: str, separator: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    names = [name.strip() for name in header.split(separator)]
    path.write_text(f"{header}\n{header.replace('prompt', 'q')}\n")
    ((_, row),) = read_rows(path)
    assert list(row) == names


def test_paragraphs_of_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("one\ntwo\n\n\nthree\n")
    rows = list(read_rows(path))
    assert rows == [(f"{path}:1", {"text": "one\ntwo"}), (f"{path}:5", {"text": "three"})]


@pytest.mark.parametrize("text", ["[1] A note.\nOn two lines.", "{braces} first", '{"a": 1} then'])
def test_a_text_that_begins_with_a_bracket_is_a_text(text: str, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(text)
    assert [row for _, row in read_rows(path)] == [{"text": text}]


UNREADABLE = {
    "rows.jsonl": '{"text": "a"}\n3\n{"text": "b"}\n{"text"\n{"text": "c"}\n',
    "rows.json": '[{"text": "a"},\n3,\n{"text": "b"},\n"x",\n{"text": "c"}]\n',
    "wrapped.json": '{"data": [{"text": "a"},\n3,\n{"text": "b"},\n"x",\n{"text": "c"}]}\n',
    "rows.csv": 'text,messages\na,\nb,,c\nb,\nx,"[3"\nc,\n',
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_each_row_that_cannot_be_read_is_complained_of_and_the_others_are_read(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(UNREADABLE[name])
    complaints: list[str] = []
    assert [row["text"] for _, row in read_rows(path, complaints.append)] == ["a", "b", "c"]
    one, other = complaints
    lines = (3, 5) if name.endswith(".csv") else (2, 4)
    assert one.startswith(f"{path}:{lines[0]}: ") and other.startswith(f"{path}:{lines[1]}: ")
    assert one.partition(": ")[2] != other.partition(": ")[2]
    with pytest.raises(DataError) as error:
        list(read_rows(path))
    assert str(error.value) == one


def test_a_folder_trains_on_its_train_file_and_validates_on_the_other(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl", "other.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    (tmp_path / "manifest.json").write_text("{}")
    assert [row["text"] for _, row in read_rows(tmp_path)] == ["train.jsonl"]
    assert valid_beside(tmp_path) == str(tmp_path / "valid.jsonl")


def rows_in(source: Path | str | None) -> list[str]:
    assert source is not None
    return sorted({row["text"] for _, row in read_rows(source)})


def write_shards(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        pq.write_table(pa.table({"text": [name]}), folder / f"{name}.parquet")


@pytest.mark.parametrize("inside", ["", "data"])
def test_of_a_folder_with_splits_training_reads_its_own(inside: str, tmp_path: Path) -> None:
    folder = tmp_path / inside
    train = ["train-00000-of-00002", "train-00001-of-00002"]
    valid = ["validation-00000-of-00002", "validation-00001-of-00002"]
    write_shards(folder, *train, *valid, "test")
    assert rows_in(tmp_path) == train
    assert rows_in(valid_beside(tmp_path)) == valid
    assert rows_in(f"{tmp_path}#test") == ["test"]
    for name in train:
        (folder / f"{name}.parquet").unlink()
    with pytest.raises(DataError, match=r"holds no file for training, only test\.parquet"):
        rows_in(tmp_path)
    write_shards(folder, "mine")
    assert rows_in(tmp_path) == ["mine"]


@pytest.mark.parametrize("other", ["mine_test", "test-v2", "dpo_valid", "x.eval", "._train"])
def test_a_file_is_of_a_split_by_a_word_of_its_name_and_hidden_ones_of_none(
    other: str, tmp_path: Path
) -> None:
    for name in ("mine", other):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    assert rows_in(tmp_path) == ["mine"]


def test_a_folder_of_folders_names_them(tmp_path: Path) -> None:
    (tmp_path / "english").mkdir()
    with pytest.raises(DataError, match=r"holds no data file .*; name one of its folders: english"):
        rows_in(tmp_path)
    with pytest.raises(DataError, match=r"builtin:x: only a recipe .*: forty2 data build x "):
        rows_in("builtin:x")
    with pytest.raises(DataError, match=r"there is no such file or folder; did you mean .*english"):
        rows_in(tmp_path / "englsh")
    with pytest.raises(DataError, match=r"; a data set of the hub is hub:owner/name"):
        rows_in("owner/name")
    with pytest.raises(DataError, match=r"is an address, not a file; download it first"):
        rows_in("https://example.org/rows.jsonl")


@pytest.mark.parametrize("start", [b"\x1f\x8b\x08", b"PAR1", b"PK\x03\x04"])
def test_a_file_that_holds_no_text_is_called_what_it_is(start: bytes, tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.csv", "rows.txt"):
        (tmp_path / name).write_bytes(start + bytes(80))
        with pytest.raises(DataError, match=r"is a .*, not text; name it by its kind"):
            rows_in(tmp_path / name)


def test_a_web_page_is_called_what_it_is(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.csv"):
        (tmp_path / name).write_text("\n<!DOCTYPE html>\n<html></html>")
        with pytest.raises(DataError, match=r"is a web page \(HTML\), not rows; download the file"):
            rows_in(tmp_path / name)
    page = tmp_path / "rows.txt"  # may be what is to be learned
    page.write_text("<html></html>")
    assert rows_in(page) == ["<html></html>"]


def test_a_saved_data_set_is_read(tmp_path: Path) -> None:
    import datasets

    made = {
        name: datasets.Dataset.from_list([{"text": name}] * 3) for name in ("train", "validation")
    }
    made["train"].save_to_disk(tmp_path / "one", num_shards=2)
    assert len(list(read_rows(tmp_path / "one"))) == 3
    assert valid_beside(tmp_path / "one") is None
    datasets.DatasetDict(made).save_to_disk(tmp_path / "both")
    assert rows_in(tmp_path / "both") == ["train"]
    assert rows_in(valid_beside(tmp_path / "both")) == ["validation"]
    datasets.DatasetDict({"test": made["train"]}).save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match="has no split train; name one of its folders: test"):
        rows_in(tmp_path / "none")


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "broken.parquet", "broken.jsonl.gz"])
def test_what_cannot_be_read_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PAR1 not really")
    with pytest.raises(DataError) as error:
        read_records(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


TEXT, VIEW = pa.string(), pa.string_view()
COLUMNS = {
    "views": pa.array(["a" * 20, None, "b"], VIEW),
    "lists of views": pa.array([["a" * 20, "b"], [], None], pa.list_view(TEXT)),
    "numbers in a dictionary": pa.array([1, 2, 1]).dictionary_encode(),
    "dates in a dictionary": pa.array([date(2026, 1, 2)] * 3).dictionary_encode(),
    "truth values in a dictionary": pa.array([True, None, False]).dictionary_encode(),
    "views in a dictionary": pa.DictionaryArray.from_arrays(
        pa.array([1, 0, None]), pa.array(["a", "b"], VIEW)
    ),
    "lists in a dictionary": pa.DictionaryArray.from_arrays(
        pa.array([1, 0, 1]), pa.array([["a"], ["b", "c"]])
    ),
    "lists of one length": pa.array([["a", "b"], None, ["c", "d"]], pa.list_(TEXT, 2)),
    "views in messages": pa.array(
        [[{"role": "user", "content": "q"}], [], None],
        pa.list_(pa.struct({"role": VIEW, "content": VIEW})),
    ),
    "no rows of views": pa.array([], VIEW),
}


ARROW_ALONE = {"views in a dictionary", "lists in a dictionary", "views in messages"}
"""Columns that pyarrow cannot write to Parquet."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, "arrow") for name in COLUMNS),
        *((name, "parquet") for name in COLUMNS if name not in ARROW_ALONE),
    ],
)
def test_a_column_of_every_type_is_read(name: str, kind: str, tmp_path: Path) -> None:
    table = pa.table({"x": COLUMNS[name]})
    path = tmp_path / f"rows.{kind}"
    if kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    else:
        pq.write_table(table, path)
    plain = [str(v) if isinstance(v, date) else v for v in table["x"].to_pylist()]
    wanted = [{} if value is None else {"x": value} for value in plain]
    assert [row for _, row in read_rows(path)] == wanted


@pytest.mark.parametrize("rows", [3000, 40])
def test_chats_whose_dictionaries_grew_too_large_are_read_whole(tmp_path: Path, rows: int) -> None:
    """Such a column has dictionary pages first and others after them, which Arrow cannot mix."""
    chats = [
        {"messages": [{"role": "user", "content": f"Question {n}?" + "!" * 50}]}
        for n in range(rows)
    ]
    path = tmp_path / "chats.parquet"
    pq.write_table(
        pa.Table.from_pylist(chats),
        path,
        dictionary_pagesize_limit=1000,
        write_batch_size=16,
        data_page_size=1000,
        row_group_size=2000,
    )
    assert [row for _, row in read_rows(path)] == chats
    assert [origin for origin, _ in read_rows(path)][-1] == f"{path}:row {rows}"
