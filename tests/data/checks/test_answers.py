"""Answers that break off, or mix languages, are found in sets that are not written that way."""

from __future__ import annotations

import random

import pytest
from support.lint_rows import Row, chat, chats, checks, found, pairs, sentence


def unended(n: int) -> list[Row]:
    """Conversations with long answers that end without a full stop."""
    generator = random.Random(2)
    return [chat(sentence(generator, 9), sentence(generator, 45).rstrip(".")) for _ in range(n)]


@pytest.mark.parametrize("n", [10, 40])
def test_a_set_written_without_full_stops_is_not_cut_off(n: int) -> None:
    assert checks(found(unended(n))) == []
    assert checks(found([*unended(n), *chats(30)])) == []  # short answers show no habit


@pytest.mark.parametrize(("unended_rows", "ended_rows"), [(9, 0), (20, 20), (3, 60)])
def test_a_few_long_answers_without_an_end_are_cut_off(unended_rows: int, ended_rows: int) -> None:
    generator = random.Random(4)
    ended = [chat(sentence(generator, 9), sentence(generator, 45)) for _ in range(ended_rows)]
    rows = [*unended(unended_rows), *ended]
    assert checks(found(rows)) == [("truncated", "warning", unended_rows)]


@pytest.mark.parametrize("end", ["\n", "  ", "\n\n"])
def test_sides_that_differ_in_blanks_alone_are_equal(end: str) -> None:
    rows = [*pairs(20), {"prompt": "Is it?", "chosen": "It is.", "rejected": f"It is.{end}"}]
    assert ("equal", "error", 1) in checks(found(rows))
    rows[-1]["rejected"] = f"It is!{end}"
    assert checks(found(rows)) == []


def test_sides_that_differ_in_the_encoding_of_accents_alone_are_equal() -> None:
    rows = [{"prompt": "q", "chosen": "a caf\u00e9", "rejected": "a cafe\u0301"}]
    assert ("equal", "error", 1) in checks(found(rows))


def test_languages_that_mix() -> None:
    german = "Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter von gestern, Nummer {}."
    english = (
        "This is quite an ordinary English sentence about the weather of yesterday, number {}."
    )
    rows = [chat(f"Frage {n} dazu?", german.format(n * 7919)) for n in range(30)]
    rows += [chat(f"A question {n} then?", english.format(n * 104729)) for n in range(70)]
    (finding,) = (f for f in found(rows) if f.check == "language")
    assert "en 70%" in finding.message and "de 30%" in finding.message
