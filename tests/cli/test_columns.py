"""Texts in columns fit the terminal, and lose nothing unless they are to be cut."""

from __future__ import annotations

import pytest

from forty2.cli.columns import side_by_side
from forty2.text_layout import width_of


@pytest.mark.parametrize("width", [10, 20, 60, 80])
def test_two_texts_fit_a_window(width: int) -> None:
    base, tuned = "word " * 40, "One.\n\nTwo lines, then " + "x" * 100
    lines = side_by_side([base, tuned], ["base", "tuned"], width).splitlines()
    assert max(map(width_of, lines)) <= width
    shown = " ".join(lines)
    assert shown.count("word") == 40 and shown.count("x") == 100 and "tuned" in shown


def test_wide_characters_take_two_columns() -> None:
    lines = side_by_side(["好" * 30, "a"], ["base", "tuned"], 40).splitlines()
    assert max(map(width_of, lines)) <= 40 and "".join(lines).count("好") == 30


def test_a_long_text_is_cut_where_asked() -> None:
    lines = side_by_side(["a\n" * 9, ""], ["long", "none"], 40, most_lines=2).splitlines()
    assert [line.split("|")[0].strip() for line in lines] == ["long", "a", "a", "…"]
    assert "(blank)" in lines[1]


@pytest.mark.parametrize("width", [40, 80])
def test_texts_of_any_length_stay_in_their_columns(width: int) -> None:
    texts = ["\n\n\n", "word " * 500, "漢字" * 40]
    lines = side_by_side(texts, ["a", "b", "c"], width, narrowest=24, most_lines=12).splitlines()
    assert "(blank)" in lines[1] and 14 <= len(lines) <= 60
    assert max(map(width_of, lines)) <= width
