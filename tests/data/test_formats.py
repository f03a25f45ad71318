"""Every shape and file in which people keep training data gives the same records."""

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

from forty2.data.formats import parse, read_pairs, read_records, to_row
from forty2.data.records import Chat, Pair, Rated, Text
from forty2.data.sources import dumps, read_rows, valid_beside
from forty2.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
OTHER = {"role": "assistant", "content": "b"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
SYSTEM = {"role": "system", "content": "s"}


def core(row: dict[str, Any]) -> Any:
    record = parse(row, "f:1")
    if isinstance(record, Chat):
        return [dict(m) for m in record.messages]
    if isinstance(record, Pair):
        return [dict(m) for m in record.prompt], record.chosen, record.rejected
    if isinstance(record, Rated):
        return [dict(m) for m in record.prompt], record.response, record.desirable
    return record.text


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT]},
        {"conversations": [HUMAN, GPT]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"instruction": "q", "input": "", "output": "a"},
    ],
)
def test_one_conversation_in_every_shape(row: dict[str, Any]) -> None:
    assert core(row) == [USER, ASSISTANT]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]},
        {"prompt": "q", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "b"}},
        {"instruction": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ],
)
def test_one_pair_in_every_shape(row: dict[str, Any]) -> None:
    assert core(row) == ([USER], "a", "b")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "label": False},
        {"messages": [USER, ASSISTANT], "label": False},
        {"conversations": [HUMAN, GPT], "kto_tag": False},
        {"instruction": "q", "output": "a", "kto_tag": False},
    ],
)
def test_one_rated_answer_in_every_shape(row: dict[str, Any]) -> None:
    assert core(row) == ([USER], "a", False)


def test_what_surrounds_the_question_is_kept() -> None:
    alpaca = {"instruction": "q2", "input": "about this", "output": "a2", "system": "s"}
    assert core({**alpaca, "history": [["q", "a"]]}) == [
        SYSTEM,
        USER,
        ASSISTANT,
        {"role": "user", "content": "q2\nabout this"},
        {"role": "assistant", "content": "a2"},
    ]
    assert core({"conversations": [HUMAN, GPT], "system": "s"})[0] == SYSTEM
    record = parse({"text": "prose", "source": "book"}, "f:1")
    assert isinstance(record, Text) and record.meta == {"source": "book"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"chosen": [USER, ASSISTANT], "rejected": [SYSTEM, OTHER]}, "differ in the last turn"),
        ({"chosen": "a", "rejected": "b"}, "prompt is missing"),
        ({"prompt": "q", "chosen": [SYSTEM, ASSISTANT], "rejected": "b"}, "not the prompt"),
        ({"prompt": "q", "chosen": [USER], "rejected": "b"}, "end with an assistant turn"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "conversations[0].role"),
        ({"messages": [USER], "label": True}, "end with the assistant's turn"),
        ({"messages": [USER, ASSISTANT], "label": "yes"}, "label must be true or false"),
        ({"messages": [USER, CALL], "label": True}, "messages ends with a tool call"),
        ({"prompt": "q", "chosen": [CALL], "rejected": "b"}, "chosen ends with a tool call"),
        ({"text": "a", "label": True}, "completion, or instruction and output; has text"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "history[0]"),
        ({"text": ""}, "text is empty"),
        ({"note": 1}, "needs messages"),
    ],
)
def test_a_bad_row_is_named_with_its_field(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError) as error:
        parse(row, "f:7")
    assert str(error.value).startswith("f:7: ") and complaint in str(error.value)


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


def test_published_files_are_read(bench_data: Path) -> None:
    folder = bench_data / "preference"
    dpo = read_records(folder / "llamafactory_dpo_en_demo.json")
    kto = read_records(folder / "llamafactory_kto_en_demo.json")
    assert len(dpo) == len(kto) == 300
    assert all(isinstance(record, Pair) for record in dpo)
    assert sum(isinstance(r, Rated) and r.desirable for r in kto) == 150
    with pytest.raises(DataError, match=r"ultrafeedback_binarized_sample_train_1000.jsonl:\d+: "):
        read_records(folder / "ultrafeedback_binarized_sample_train_1000.jsonl")
