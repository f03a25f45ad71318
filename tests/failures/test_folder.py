"""The folder of a failure loop: each half by itself, and changes of either noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forty2.errors import DataError, RunError
from forty2.failures.folder import (
    HALVES,
    Half,
    Item,
    StoredVerdict,
    halves_sha256,
    item_id,
    json_line,
    read_half,
    read_replies,
    read_verdicts,
    refuse_if_made,
    write_testset,
)


def item(number: int, half: Half) -> Item:
    messages = ({"role": "user", "content": f"Question {number}?"},)
    return Item(
        id=item_id(messages, None, None),
        stratum="other",
        messages=messages,
        verifier=None,
        reference=None,
        half=half,
        group=number,
        source="x.jsonl:1",
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    items = [item(n, HALVES[n % 2]) for n in range(6)]
    write_testset(tmp_path, items, {"sha256": halves_sha256(items)})
    return tmp_path


def test_a_half_is_read_without_the_other(folder: Path) -> None:
    for place, half in enumerate(HALVES):
        assert [one.group for one in read_half(folder, half)] == [place, place + 2, place + 4]
        assert {one.half for one in read_half(folder, half)} == {half}


@pytest.mark.parametrize("half", HALVES)
def test_a_change_of_either_half_is_noticed_whichever_is_read(folder: Path, half: Half) -> None:
    path = folder / "testset.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    place = next(n for n, line in enumerate(lines) if json.loads(line)["half"] == half)
    for changed in (
        lines[:place] + lines[place + 1 :],
        [*lines[:place], lines[place].replace("Question", "question"), *lines[place + 1 :]],
        [*lines, lines[place]],
    ):
        path.write_text("".join(changed), "utf-8")
        for other in HALVES:
            with pytest.raises(RunError, match=f"the half '{half}' is not the one"):
                read_half(folder, other)


def test_an_item_moved_to_the_other_half_is_noticed(folder: Path) -> None:
    path = folder / "testset.jsonl"
    text = path.read_text("utf-8").replace('"untouched"', '"find"', 1)
    path.write_text(text, "utf-8")
    with pytest.raises(RunError, match="is not the one"):
        read_half(folder, "find")


@pytest.mark.parametrize("line", ["{", "[]", '{"half": "third"}', '{"half": "find"}'])
def test_a_damaged_line_is_named(folder: Path, line: str) -> None:
    path = folder / "testset.jsonl"
    path.write_text(f"{line}\n{path.read_text('utf-8')}", "utf-8")
    with pytest.raises(RunError, match=r"testset\.jsonl:1: "):
        read_half(folder, "find")


def test_without_a_test_set_the_message_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="forty2 failures testset --out"):
        read_half(tmp_path, "find")
    with pytest.raises(RunError, match="forty2 failures find"):
        read_replies(tmp_path)


def test_verdicts_are_read_as_they_were_written(tmp_path: Path) -> None:
    verdict = StoredVerdict("a", "fail", "judge", 3.5, "mean of 2 scores")
    (tmp_path / "verdicts.jsonl").write_bytes(json_line(verdict._asdict()))
    assert read_verdicts(tmp_path) == {"a": verdict}


def test_a_test_set_with_replies_is_not_replaced(folder: Path) -> None:
    with pytest.raises(DataError, match="exists already"):
        refuse_if_made(folder)


def test_an_id_depends_on_what_is_asked_and_how_it_is_checked() -> None:
    messages = ({"role": "user", "content": "é?"},)
    ids = {item_id(messages, None, None), item_id(messages, {"kind": "exact"}, None)}
    ids |= {item_id(messages, None, "é"), item_id((*messages, *messages), None, None)}
    assert len(ids) == 4 and all(len(one) == 16 for one in ids)
