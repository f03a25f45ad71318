"""Rows are cut and dropped as promised, and hashed as the first release hashed them."""

from __future__ import annotations

from forty2.text.rows import PairRow, RatedRow, Row, fit_rows, rows_sha256, turn_ends


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


def test_a_long_text_is_divided_and_every_token_learned_once() -> None:
    ids = list(range(100, 147))
    text = Row(ids, [False] + [True] * 46, "f:1", weight=2.0, is_text=True)
    fitted = fit_rows([text, text._replace(ids=ids[:10], mask=text.mask[:10])], 10)
    assert (fitted.shortened, fitted.dropped) == ([], [])
    learned = [i for row in fitted.rows[:-1] for i, on in zip(row.ids, row.mask, strict=True) if on]
    assert learned == ids[1:]
    for row, previous in zip(fitted.rows[1:-1], fitted.rows, strict=False):
        assert row.ids[0] == previous.ids[-1] and len(row.ids) <= 10
        assert (row.origin, row.weight) == ("f:1", 2.0)
    assert fitted.rows[-1].ids == ids[:10]


def test_the_ends_of_learned_turns_are_found() -> None:
    turns = Row([1, 2, 9, 3, 4, 8], [False, True, True, False, True, True], "f:1")
    assert turn_ends([turns]) == {9, 8}
    assert turn_ends([PairRow([1], [2, 7], [3, 6], "f:1")]) == {7}
    assert turn_ends([Row([1, 2, 5], [False, True, True], "f:1", is_text=True)]) == set()


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
    assert rows_sha256([row._replace(is_text=True) for row in chats]) == rows_sha256(chats)


def test_both_kinds_of_pair_name_their_responses_in_the_order_they_are_scored() -> None:
    assert PairRow([1], [2, 3], [4], "a:1").responses == ([2, 3], [4])
    assert RatedRow([1], [2, 3], [4], False, "a:1").responses == ([2, 3], [4])
