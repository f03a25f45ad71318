"""Rows are cut and dropped as promised, and hashed as the first release hashed them."""

from __future__ import annotations

from forty2.text.rows import PairRow, RatedRow, Row, fit_rows, rows_sha256


def test_long_prompts_lose_their_left_end_and_long_responses_the_row() -> None:
    rows = [
        PairRow(list(range(10)), [1, 2], [3], "f:1"),
        PairRow(list(range(50)), [1, 2], [3, 4, 5], "f:2"),
        PairRow([7, 8], list(range(30)), [3], "f:3"),
    ]
    fitted = fit_rows(rows, 20)
    assert fitted.rows == [rows[0], PairRow(list(range(33, 50)), [1, 2], [3, 4, 5], "f:2")]
    assert (fitted.shortened, fitted.dropped) == (["f:2"], ["f:3"])


def test_a_long_conversation_keeps_every_supervised_token_or_goes() -> None:
    row = Row(list(range(30)), [False] * 20 + [True] * 10, "f:1")
    assert fit_rows([row], 12).rows == [Row(list(range(18, 30)), [False] * 2 + [True] * 10, "f:1")]
    assert fit_rows([row], 11).rows[0].mask == [False] + [True] * 10
    assert fit_rows([row], 10).dropped == ["f:1"]  # nothing would be left to predict the first from


def test_hashes_are_those_of_earlier_releases() -> None:
    """Runs store them: with other hashes no earlier run could go on."""
    chats = [
        Row([1, 2, 3], [False, True, True], "a:1"),
        Row([4], [True], "a:2", [0], 2.5),
    ]
    rated = RatedRow([1], [2, 3], [4], True, "a:1", 0.5)
    assert rows_sha256(chats).startswith("c83ca4224f8e07d0")
    assert rows_sha256([PairRow([1], [2, 3], [4], "a:1")]).startswith("676c01785fc6d039")
    assert rows_sha256([rated]).startswith("2d6e8ae0b25e74da")
    assert rows_sha256([rated._replace(origin="b:7")]) == rows_sha256([rated])


def test_both_kinds_of_pair_name_their_responses_in_the_order_they_are_scored() -> None:
    assert PairRow([1], [2, 3], [4], "a:1").responses == ([2, 3], [4])
    assert RatedRow([1], [2, 3], [4], False, "a:1").responses == ([2, 3], [4])
