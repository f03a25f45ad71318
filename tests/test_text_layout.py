"""What is laid out for a terminal fits it and has the same words; what goes into a pipe stays."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forty2.text_layout import LineBreaker, fit, terminal_width, width_of

TABLE = """
change from the base                  change  95% interval      verdict
------------------------------------------------------------------------
phase1_sft       pairs right          +0.123  -0.100 to +0.300  too few to tell anything
phase2_dpo       pairs right         -12.345  -0.100 to +0.300  gain
""".strip()


@given(st.lists(st.text("ab 漢", min_size=1, max_size=12)), st.integers(8, 40))
def test_a_sentence_breaks_at_spaces_alone(parts: list[str], width: int) -> None:
    text = " ".join(" ".join(parts).split())
    lines = fit(text, width).split("\n")
    assert " ".join(" ".join(lines).split()) == text
    assert all(width_of(line) <= width or " " not in line.strip() for line in lines)


@pytest.mark.parametrize(
    ("line", "indent"),
    [
        ("A sentence that is longer than the terminal is wide.", 0),
        ("  step 3 of 12: validation loss 2.345, accuracy 56%", 4),
        ("verdict    Better on your held-out rows: 50% of pairs", 11),
        ("model      1.2 GB  models that were fetched or imported", 19),
    ],
)
def test_a_line_goes_on_below_its_last_column(line: str, indent: int) -> None:
    first, *others = fit(line, 40).split("\n")
    assert first == line[: len(first)] and others
    assert {len(other) - len(other.lstrip()) for other in others} == {indent}


def test_a_path_too_long_for_its_column_is_below() -> None:
    path = "adapters/mine/a_name_that_is_long/report"
    assert fit(f"report     {path}", 44).split("\n") == ["report", f"  {path}"]


def test_a_table_comes_as_near_as_it_must_and_no_number_is_cut() -> None:
    assert fit(TABLE, 88) == TABLE
    assert fit(TABLE, 73).splitlines()[3] == "phase2_dpo pairs right -12.345 -0.100 to +0.300 gain"
    assert fit(TABLE, 68).splitlines()[2:4] == [
        "phase1_sft pairs right   +0.123  -0.100 to +0.300  too few to tell",
        f"{'':51}anything",
    ]
    assert fit(TABLE, 44).splitlines() == [
        "change from the base phase1_sft pairs right",
        "  change +0.123",
        "  95% interval -0.100 to +0.300",
        "  verdict too few to tell anything",
        "change from the base phase2_dpo pairs right",
        "  change -12.345",
        "  95% interval -0.100 to +0.300",
        "  verdict gain",
    ]


def test_a_table_of_markdown_becomes_plain_if_it_is_too_wide() -> None:
    table = "| model | 16 bits |\n| --- | --- |\n| Qwen2.5 0.5B | 2.7 (8) |"
    assert fit(table, 30) == table
    assert fit(table, 24).splitlines()[::2] == ["model         16 bits", "Qwen2.5 0.5B  2.7 (8)"]


@given(st.text("ab \n", max_size=60), st.integers(1, 9), st.integers(4, 12))
def test_pieces_are_broken_as_the_whole_text(text: str, size: int, width: int) -> None:
    def broken(pieces: list[str]) -> str:
        breaker = LineBreaker(width)
        return "".join([*map(breaker.feed, pieces), breaker.end()])

    pieces = [text[n : n + size] for n in range(0, len(text), size)]
    assert broken(pieces) == broken([text])
    assert broken(pieces).split() == text.split()
    lines = broken(pieces).split("\n")
    assert all(len(line.rstrip()) <= width or " " not in line.strip() for line in lines)
    passed_on = LineBreaker(None)
    assert [*map(passed_on.feed, pieces), passed_on.end()] == [*pieces, ""]


def test_a_pipe_has_no_width_and_a_user_may_give_it_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal_width(io.StringIO()) is None
    monkeypatch.setenv("COLUMNS", "60")
    assert terminal_width(io.StringIO()) == 60
