"""Two replies to one prompt side by side, with the words marked that only one of them has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from forty2.report.run_types import Answer

_LEAST_ALIKE = 0.2
"""Replies that have a smaller share of their words in common are not marked: all would be."""


class Piece(NamedTuple):
    """A part of a reply."""

    text: str
    differs: bool
    """True if the other reply lacks it."""


class Reply(NamedTuple):
    """A reply in pieces, which joined are its text."""

    pieces: list[Piece]
    hedges: bool
    """True if it hedges where a plain fact was asked for."""


class Pair(NamedTuple):
    """The replies of the base and of the last stage to one prompt."""

    prompt: str
    before: Reply
    after: Reply
    between: tuple[tuple[str, str], ...]
    """The stages between the two, each with its reply."""
    expected: str
    """The answer of the held-out row; "": none is known."""


def marked(answers: Sequence[Answer]) -> list[Pair]:
    """Mark what differs between the replies to each prompt; prompts whose replies differ first."""
    pairs = []
    for answer in sorted(answers, key=lambda answer: answer.before == answer.after):
        before, after = differing(answer.before, answer.after)
        replies = Reply(before, answer.before_leaks), Reply(after, answer.after_leaks)
        pairs.append(Pair(answer.prompt, *replies, answer.between, answer.expected))
    return pairs


def differing(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Split two texts into the words that they share and those that only one has.

    Returns:
        The pieces of each text, in order. Texts with little in common are one piece each, unmarked.
    """
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    if matcher.ratio() < _LEAST_ALIKE:
        return [Piece(before, False)], [Piece(after, False)]
    pieces_before, pieces_after = list[Piece](), list[Piece]()
    for tag, start, end, start_after, end_after in matcher.get_opcodes():
        if start < end:
            pieces_before.append(Piece("".join(old[start:end]), tag != "equal"))
        if start_after < end_after:
            pieces_after.append(Piece("".join(new[start_after:end_after]), tag != "equal"))
    return pieces_before, pieces_after
