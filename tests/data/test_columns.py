"""Tables with columns of other names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.shop import CHATS, PAIRS, TABLES, THUMBS

from forty2.data.columns import (
    VERDICTS,
    Kind,
    UnknownColumns,
    guess_columns,
    named_in,
    read_kind,
    read_mapping,
    written_mapping,
)
from forty2.data.records import Rated
from forty2.errors import DataError


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("kind", "mapping", "table", "rows"),
    [
        ("chats", "Frage=prompt,Antwort=completion", TABLES[0], CHATS),
        ("pairs", "Frage=prompt,Besser=chosen,Schlechter=rejected", TABLES[1], PAIRS),
        ("thumbs", "Customer asked=prompt,We said=completion,Thumb=label", TABLES[2], THUMBS),
    ],
)
def test_the_guess_is_right_and_gives_the_same_rows(
    kind: Kind, mapping: str, table: str, rows: str
) -> None:
    with pytest.raises(UnknownColumns) as error:
        read_kind(table, kind, {}, set())
    assert error.value.guess == read_mapping([mapping])
    assert mapping in str(error.value) and "\n" not in str(error.value)
    used: set[str] = set()
    read = read_kind(table, kind, read_mapping([mapping]), used)
    assert used == set(error.value.guess)
    plain = read_kind(rows, kind, {}, set())
    assert len(read.records) == len(plain.records) and not read.faults
    if kind == "thumbs":
        verdicts = [r.desirable for r in read.records if isinstance(r, Rated)]
        assert verdicts == [r.desirable for r in plain.records if isinstance(r, Rated)]


def test_columns_without_telling_names_are_guessed_by_their_order() -> None:
    rows = [{"a": f"q{n}", "b": f"r{n}", "c": str(n % 2)} for n in range(4)]
    assert guess_columns("thumbs", rows) == {"a": "prompt", "b": "completion", "c": "label"}


def test_a_column_may_be_named_in_another_case_where_only_one_is_called_so(tmp_path: Path) -> None:
    assert named_in("frage", ["Frage", "Antwort"]) == "Frage"
    assert named_in("frage", ["Frage", "frage"]) == "frage"
    assert named_in("FRAGE", ["Frage", "frage"]) is None and named_in("Fra", ["Frage"]) is None
    table, used = write(tmp_path / "x.csv", "Frage,Antwort", "a,b"), set[str]()
    read = read_kind(table, "chats", {"frage": "prompt", "ANTWORT": "completion"}, used)
    assert len(read.records) == 1 and used == {"frage", "ANTWORT"}


def test_a_name_with_a_blank_is_written_in_quotes() -> None:
    mapping = {"We said": "completion", "Q": "prompt"}
    assert written_mapping(mapping, "chats") == "'Q=prompt,We said=completion'"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt=Frage", "did you mean Frage=prompt?"),
        ("Frage", "write COLUMN=NAME"),
        ("Frage=promt", "one of prompt, completion"),
        ("a=prompt,a=completion", "named twice"),
    ],
)
def test_a_mapping_that_is_not_one_is_refused(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says.replace("?", r"\?")):
        read_mapping([text])


def test_two_columns_for_one_name_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path / "x.csv", "prompt,q,completion", "a,b,c")
    with pytest.raises(DataError, match=r"x\.csv:2: q and another column are both prompt"):
        read_kind(table, "chats", {"q": "prompt"}, set())


@pytest.mark.parametrize(
    ("file", "kind", "says"),
    [
        (PAIRS, "chats", "is a pair: give the file as `pairs`"),
        (CHATS, "pairs", "is a conversation: give the file as `chats`"),
        (CHATS, "thumbs", "is a conversation: give the file as `chats`"),
        (THUMBS, "chats", "is a rated answer: give the file as `thumbs`"),
    ],
)
def test_a_file_of_another_kind_is_named(file: str, kind: Kind, says: str) -> None:
    with pytest.raises(DataError) as error:
        read_kind(file, kind, {}, set())
    assert not isinstance(error.value, UnknownColumns) and says in str(error.value)


def test_a_table_without_a_recognised_verdict_asks_for_it(tmp_path: Path) -> None:
    lines = [f"Question {n}?,Answer {n}.,{n}" for n in range(5)]
    table = write(tmp_path / "x.csv", "question,answer,stars", *lines)
    with pytest.raises(UnknownColumns, match=r"question=prompt,answer=completion,COLUMN=label"):
        read_kind(table, "thumbs", {}, set())


def test_a_bad_row_of_a_known_shape_is_named_by_its_line(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "q", "completion": "a"})
    file = write(tmp_path / "x.jsonl", good, '{"prompt": "q", "completion": ""}')
    with pytest.raises(DataError, match=r"x\.jsonl:2: ") as error:
        read_kind(file, "chats", {}, set())
    assert not isinstance(error.value, UnknownColumns)


def test_a_tenth_of_the_rows_may_be_left_out_and_each_is_named(tmp_path: Path) -> None:
    good = [json.dumps({"prompt": f"q{n}", "completion": "a"}) for n in range(18)]
    bad = [
        '{"prompt": "q", "completion": ""}',
        '{"promt": "q", "completion": "a"}',
        '{"prompt": "q", "chosen": "a", "rejected": "b"}',
    ]
    read = read_kind(write(tmp_path / "x.jsonl", *good, *bad[:2]), "chats", {}, set())
    assert len(read.records) == 18
    assert [str(fault).partition(": ")[0].rpartition("/")[2] for fault in read.faults] == [
        "x.jsonl:19",
        "x.jsonl:20",
    ]
    with pytest.raises(DataError, match=r"x\.jsonl:1: .*\(the first of 3 bad rows\)"):
        read_kind(write(tmp_path / "x.jsonl", *bad, *good), "chats", {}, set())


def test_a_verdict_that_is_none_is_named_by_its_line(tmp_path: Path) -> None:
    table = write(tmp_path / "x.csv", "prompt,completion,label", "a,b,good", "c,d,perhaps")
    with pytest.raises(DataError, match=r"x\.csv:3: label is 'perhaps'; write true") as error:
        read_kind(table, "thumbs", {}, set())
    words = str(error.value).partition("; write ")[2].replace(" or ", ", ").split(", ")
    for word in words:  # each word that is named is read
        table = write(tmp_path / "y.csv", "prompt,completion,label", f"a,b,{word}")
        (record,) = read_kind(table, "thumbs", {}, set()).records
        assert isinstance(record, Rated) and record.desirable == (words.index(word) % 2 == 0)


def test_of_a_file_that_is_all_bad_the_rows_that_were_looked_at_are_counted(tmp_path: Path) -> None:
    bad = ['{"prompt": "q", "completion": ""}'] * 60
    with pytest.raises(DataError, match=r"x\.jsonl:1: .*\(none of the first 20 rows can be read\)"):
        read_kind(write(tmp_path / "x.jsonl", *bad), "chats", {}, set())


def test_every_verdict_that_a_message_offers_is_read(tmp_path: Path) -> None:
    for word in VERDICTS.replace(" or ", ", ").split(", "):
        rows = write(tmp_path / "x.csv", "prompt,completion,label", f"a,b,{word}")
        (record,) = read_kind(rows, "thumbs", {}, set()).records
        assert isinstance(record, Rated)
