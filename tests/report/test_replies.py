"""Replies side by side: what is marked, and that no character is lost."""

from __future__ import annotations

import pytest

from forty2.report.replies import differing, marked
from forty2.report.run_types import Answer

TEXTS = [
    ("A new fork costs 1000 euros.", "A new fork costs 90 euros."),
    ("", "Yes."),
    ("Yes.", ""),
    ("  two  spaces\n\nand lines", " two spaces and\nlines "),
    ("日本の首都は東京です", "日本の首都は京都です"),
    ("same", "same"),
    ("", ""),
]


@pytest.mark.parametrize(("before", "after"), TEXTS)
def test_the_pieces_joined_are_the_texts(before: str, after: str) -> None:
    pieces = differing(before, after)
    assert tuple("".join(piece.text for piece in side) for side in pieces) == (before, after)


def test_only_the_words_that_one_reply_has_are_marked() -> None:
    before, after = differing(*TEXTS[0])
    assert [piece.text for piece in before if piece.differs] == ["1000"]
    assert [piece.text for piece in after if piece.differs] == ["90"]


def test_replies_with_little_in_common_are_not_marked() -> None:
    before, after = differing("A new fork costs 1000 euros.", "Sorry!")
    assert not [piece for piece in (*before, *after) if piece.differs]


def test_prompts_whose_replies_differ_come_first_in_their_order() -> None:
    answers = [
        Answer(prompt, "Four.", after, False, False)
        for prompt, after in (("a", "Four."), ("b", "Five."), ("c", "Four."), ("d", "Six."))
    ]
    assert [pair.prompt for pair in marked(answers)] == ["b", "d", "a", "c"]
