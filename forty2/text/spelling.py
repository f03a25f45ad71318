"""Whether a vocabulary has the letters of the rows, or spells them in bytes or as unknown."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple

from forty2.text.rows import Row
from forty2.text.tokenizer import Tokenizer

MOST_PIECES = 0.01
"""Largest share of tokens that may be pieces of letters, or unknown, without a word."""
_ROWS_READ = 500
_PART = "\ufffd"
"""What a token decodes to that is not a whole character."""
_NOWHERE = "\U000f1234"
"""A character for private use, which no vocabulary has."""


class Spelling(NamedTuple):
    """How the tokens of some rows spell their text."""

    pieces: float
    """Share of tokens that are single bytes, or several, of letters."""
    unknown: float
    """Share of tokens that stand for what the vocabulary cannot spell."""
    letters: str
    """A few of the letters in pieces."""


def spelling(rows: Sequence[Any], tokenizer: Tokenizer) -> Spelling:
    """Count tokens that are pieces of letters, or unknown, in up to 500 rows; signs and emoji do not count."""
    every = max(1, len(rows) // _ROWS_READ)
    texts = [_ids(rows[at]) for at in range(0, len(rows), every)]
    decoded = {i: tokenizer.decode([i]) for i in set(chain.from_iterable(texts))}
    nowhere = tokenizer.encode(_NOWHERE, add_special_tokens=False)[-1]
    lost = nowhere if _PART not in tokenizer.decode([nowhere]) else None
    pieces, letters = 0, ""
    for ids in texts:
        for partial, run in groupby(ids, lambda i: _PART in decoded[i]):
            if partial:
                spelled = [*run]
                found = [c for c in tokenizer.decode(spelled) if unicodedata.category(c)[0] == "L"]
                pieces += len(spelled) if found else 0
                letters += "".join(c for c in found[:9] if c not in letters)
    tokens = sum(map(len, texts))
    unknown = sum(ids.count(lost) for ids in texts) if lost is not None else 0
    return Spelling(pieces / tokens, unknown / tokens, letters[:3])


def spelling_warning(rows: Sequence[Any], tokenizer: Tokenizer) -> str | None:
    """Say so if the model's vocabulary lacks much of what the rows hold.

    A vocabulary cut to one language left 47% of another's tokens unknown in a project before this one.
    """
    found = spelling(rows, tokenizer)
    if found.unknown > MOST_PIECES:
        return (
            f"{found.unknown:.0%} of the tokens are unknown to the model's vocabulary, so what they "
            "said is lost; use a model whose vocabulary has these characters"
        )
    if found.pieces > MOST_PIECES:
        return (
            f"{found.pieces:.0%} of the tokens are bytes of letters such as {found.letters}, which the "
            "model's vocabulary lacks, so it hardly knows such text; use a model made for the language"
        )
    return None


def _ids(row: Any) -> list[int]:
    if isinstance(row, Row):
        return [*row.ids]
    return [*row.prompt, *row.responses[0], *row.responses[1]]
