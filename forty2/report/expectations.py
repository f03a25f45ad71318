"""What an eval prompt expects of a reply, in words."""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMBER = re.compile(re.escape(r"(^|\D)") + r"((?:\d|\\\.|[,:])+)" + re.escape(r"($|\D)"))
"""A proposed pattern, which asks for a number that is no part of a longer one."""
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
    number = _NUMBER.fullmatch(expected) if match in ("regex", "") else None
    if number is not None:
        digits = number[1].replace("\\", "")
        return Expectation("contains the number ", digits, "", is_text=False)
    if match == "regex":
        return Expectation("matches the pattern ", expected, "", is_text=False)
    if match in _CHECKS:
        return Expectation(f'{_CHECKS[match]} "', expected.strip(), '"', is_text=True)
    return Expectation("", expected, "", is_text=True)


def in_words(expected: str, match: str) -> str:
    """Write in one text what a check wants, from the same as `expectation`."""
    return "".join(expectation(expected, match)[:3])
