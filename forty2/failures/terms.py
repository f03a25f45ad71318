"""Terms that set some texts apart from others: words, pairs of words, and # for any number."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NUMBER = "#"
LEAST_Z = 1.96
"""Smallest z of a distinctive term; 5% of terms that are as common outside exceed it in size."""
LEAST_SHARE = 0.05
"""Smallest share of the texts inside that hold a distinctive term."""
_PRIOR = 2.0
"""Weight of the prior, in texts."""
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:['’][^\W\d_]+)*")
_WITHOUT_SPACES = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{2,}")
"""Runs of letters of scripts that put no space between words: Thai, Lao, Japanese, Chinese."""


class Term(NamedTuple):
    """A term, and how much more often texts inside hold it than texts outside."""

    term: str
    z: float
    """Log odds ratio divided by its standard error."""
    inside: float
    """Share of the texts that hold it."""
    outside: float


def terms_of(text: str) -> set[str]:
    """Return the words of a text and the pairs of adjacent words, case folded; # is any number.

    Where a script has no spaces, pairs of letters are words.
    """
    words = list(_words(text))
    return {*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))}


def _words(text: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text.casefold()):
        word = match[0]
        if word[0].isdigit():
            yield NUMBER
        elif _WITHOUT_SPACES.fullmatch(word):
            yield from (word[place : place + 2] for place in range(len(word) - 1))
        else:
            yield word


def distinctive(inside: Sequence[str], outside: Sequence[str], most: int) -> list[Term]:
    """Return the terms that most set texts apart, the most distinctive first; there may be none.

    Those of function words alone, such as "for the", come after all others: they name nothing.
    The log odds ratio with an informative prior: each side begins with the share that both together
    have (Monroe, Colaresi & Quinn 2008, Polit. Anal. 16:372). A text counts once for a term. A term
    is left out if its words are all in one before it, or it is part of one.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    within, without = _counts(inside), _counts(outside)
    n, m = len(inside), len(outside)
    found = []
    for term, count in within.items():
        other = without[term]
        if count < max(2, LEAST_SHARE * n):
            continue
        prior = _PRIOR * (count + other) / (n + m)
        parts = (count + prior, n - count + _PRIOR - prior)
        others = (other + prior, m - other + _PRIOR - prior)
        if min(*parts, *others) <= 0:
            continue  # every text of both sides holds it
        odds = math.log(parts[0] / parts[1]) - math.log(others[0] / others[1])
        z = odds / math.sqrt(sum(1 / part for part in (*parts, *others)))
        if z >= LEAST_Z:
            found.append(Term(term, z, count / n, other / m if m else 0.0))
    found.sort(
        key=lambda term: (
            ENGLISH_STOP_WORDS.issuperset(term.term.split()),
            -round(term.z, 9),
            term.term,
        )
    )
    chosen: list[Term] = []
    for one in found:
        words = set(one.term.split())
        if not any(words <= set(c.term.split()) or set(c.term.split()) <= words for c in chosen):
            chosen.append(one)
        if len(chosen) == most:
            break
    return chosen


def _counts(texts: Sequence[str]) -> Counter[str]:
    return Counter(term for text in texts for term in terms_of(text))
