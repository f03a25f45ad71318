"""Choose the sixth of wordings, contents and questions that is for validation alone.

What is held out depends on the text and not on the seed, so eval prompts are unseen by every run.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable

_ONE_IN = 6
_WORD = re.compile(r"\w+")


def is_held_out(text: str) -> bool:
    """Return whether a text is for validation; those that differ in case or punctuation alone agree."""
    return _digest(text) % _ONE_IN == 0


def held_out_names(names: Iterable[str]) -> frozenset[str]:
    """Return the names for validation: a sixth of each group, and at least one.

    A name is its group's and a number: anti-en-03 is of the group anti-en. Where there are few, chance
    would hold out none or too many.
    """
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for name in names:
        groups[name.rpartition("-")[0]].add(name)
    return frozenset(
        name
        for own in groups.values()
        for name in sorted(own, key=_digest)[: max(1, len(own) // _ONE_IN)]
    )


def words(text: str) -> str:
    """Return the words of a text in small letters, with one space between them."""
    return " ".join(_WORD.findall(text.casefold()))


def _digest(text: str) -> int:
    """Hash the words of a text."""
    return int.from_bytes(hashlib.blake2b(words(text).encode(), digest_size=8).digest())
