"""What an eval prompt expects of a reply, in words."""

from __future__ import annotations

from typing import NamedTuple

from forty2.data.eval_proposals import number_of

_CHECKS = {"contains": "contains", "exact": "equals"}
"""Verbs for the ways to compare a reply with a text."""


class Expectation(NamedTuple):
    """A check of a reply: a text, and the words around it."""

    before: str
    text: str
    after: str
    is_text: bool
    """True if a right reply holds the text itself; False: it is a pattern, or a number."""


def expectation(expected: str, match: str) -> Expectation:
    """Say what a check wants.

    Args:
        expected: the expected text or pattern.
        match: how a reply is compared with it; "": not recorded, and then a text stands alone.
    """
    number = number_of(expected) if match in ("regex", "") else None
    if number is not None:
        return Expectation("contains the number ", number, "", is_text=False)
    if match == "regex":
        return Expectation("matches the pattern ", expected, "", is_text=False)
    if match in _CHECKS:
        return Expectation(f'{_CHECKS[match]} "', expected.strip(), '"', is_text=True)
    return Expectation("", expected, "", is_text=True)


def in_words(expected: str, match: str) -> str:
    """Write in one text what a check wants, from the same as `expectation`."""
    return "".join(expectation(expected, match)[:3])
