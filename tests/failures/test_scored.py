"""Reading scored items: the untouched half is passed over, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.failure_folder import Planted, planted, write_folder

from forty2.errors import DataError
from forty2.failures.scored import Stratum, last_user_text, read_scored


def test_only_scored_items_of_the_half_find_are_read_in_the_order_of_ids(tmp_path: Path) -> None:
    rows = [
        Planted("c", "code", "third", "fail"),
        Planted("a", "code", "first"),
        Planted("b", "maths", "second", "unscored"),
        Planted("d", "code", "secret", "fail", "untouched"),
        Planted("e", "code", "never judged", ""),
    ]
    half = read_scored(write_folder(tmp_path, rows))
    assert [(item.id, item.text, item.failed) for item in half.items] == [
        ("a", "first", False),
        ("c", "third", True),
    ]
    assert half.failures == 1
    assert half.strata == [Stratum("code", 1, 1, 1), Stratum("maths", 0, 0, 1)]


def test_the_text_is_the_last_user_message() -> None:
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    messages = [{"role": role, "content": text} for role, text in turns]
    assert last_user_text(messages, "x") == "three"
    with pytest.raises(DataError, match="x: messages holds no user message"):
        last_user_text(messages[1:2], "x")


def test_verdicts_of_another_test_set_are_refused_with_their_line(tmp_path: Path) -> None:
    write_folder(tmp_path, planted(2), {"stranger": "fail"})
    with pytest.raises(DataError, match=r"verdicts\.jsonl:9: testset\.jsonl has no item stranger"):
        read_scored(tmp_path)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("testset.jsonl", '{"id": "x", "half": "find"}', "no user message"),
        ("testset.jsonl", '{"id": "trains-000", "half": "find"}', "stands twice"),
        ("testset.jsonl", '{"id": "x", "half": "both", "messages": []}', "half must be"),
        ("testset.jsonl", "{", "not readable"),
        ("testset.jsonl", "[1]", "not readable: no JSON object"),
        ("verdicts.jsonl", '{"id": "trains-000", "verdict": "pass"}', "has two verdicts"),
        ("verdicts.jsonl", '{"id": "trains-000", "verdict": 7}', "verdict must be"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, file: str, line: str, message: str) -> None:
    path = write_folder(tmp_path, planted(1)) / file
    path.write_text(f"{path.read_text('utf-8')}{line}\n", "utf-8")
    with pytest.raises(DataError, match=rf"{file}:5: .*({message})") as caught:
        read_scored(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["testset.jsonl", "verdicts.jsonl"])
def test_a_missing_file_says_what_makes_it(tmp_path: Path, file: str) -> None:
    (write_folder(tmp_path, planted(1)) / file).unlink()
    with pytest.raises(DataError, match=rf"{file}: no such file; make it with forty2 failures"):
        read_scored(tmp_path)
