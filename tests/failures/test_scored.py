"""Reading scored items: the untouched half is passed over, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.failure_folder import Planted, planted, write_folder

from forty2.data.messages import plain_turn
from forty2.errors import DataError, RunError
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
    messages = [plain_turn(role, text) for role, text in turns]
    assert last_user_text(messages, "x") == "three"
    with pytest.raises(DataError, match="x: has no user message"):
        last_user_text(messages[1:2], "x")


def test_verdicts_of_another_test_set_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, planted(2), {"stranger": "fail"})
    with pytest.raises(DataError, match=r"verdicts\.jsonl: .* has no item stranger") as caught:
        read_scored(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_verdict_of_an_untouched_item_is_refused(tmp_path: Path) -> None:
    rows = [*planted(2), Planted("secret", "code", "hidden", half="untouched")]
    write_folder(tmp_path, rows, {"secret": "fail"})
    with pytest.raises(DataError, match="has no item secret"):
        read_scored(tmp_path)


def test_another_verdict_than_the_three_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, planted(2), {"code-000": "maybe"})
    with pytest.raises(DataError, match="the verdict of code-000 is 'maybe'"):
        read_scored(tmp_path)


def test_a_half_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path, planted(2)) / "testset.jsonl"
    path.write_text(path.read_text("utf-8").replace("Python", "Ruby"), "utf-8")
    with pytest.raises(RunError, match="the half 'find' is not the one"):
        read_scored(tmp_path)


@pytest.mark.parametrize("file", ["testset.jsonl", "verdicts.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    (write_folder(tmp_path, planted(1)) / file).unlink()
    with pytest.raises(RunError, match=file):
        read_scored(tmp_path)
