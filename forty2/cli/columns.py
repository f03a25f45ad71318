"""Texts in columns on a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from forty2.text_layout import width_of

_BETWEEN = " | "
_NARROWEST = 8
"""Width of a column, below which texts are set below each other."""


def cut(text: str, width: int) -> str:
    """Shorten a text to a width; the end is replaced by an ellipsis."""
    if width_of(text) <= width:
        return text
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def side_by_side(
    texts: Sequence[str],
    titles: Sequence[str],
    width: int,
    *,
    narrowest: int = _NARROWEST,
    most_lines: int | None = None,
) -> str:
    """Set texts in columns of equal width, or below each other if columns were too narrow.

    Args:
        width: columns of the terminal.
        narrowest: width of the narrowest column.
        most_lines: lines of a text, after which it is cut; None: all.
    """
    each = (width - len(_BETWEEN) * (len(texts) - 1)) // len(texts)
    if each < narrowest:
        below = [
            [f"{title}:", *_wrapped(text, width, most_lines)]
            for title, text in zip(titles, texts, strict=True)
        ]
        return "\n".join(line for part in below for line in part)
    columns = [
        [cut(title, each), *_wrapped(text, each, most_lines)]
        for title, text in zip(titles, texts, strict=True)
    ]
    return "\n".join(
        _BETWEEN.join(part + " " * (each - width_of(part)) for part in row).rstrip()
        for row in zip_longest(*columns, fillvalue="")
    )


def _wrapped(text: str, width: int, most_lines: int | None) -> list[str]:
    """Break a text at spaces into lines of at most `width`; wide characters take two columns."""
    if not text.strip():
        return ["(blank)"]
    lines = [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, width if width_of(line) == len(line) else width // 2)
        or [""]
    ]
    if most_lines is not None and len(lines) > most_lines:
        lines = [*lines[:most_lines], "…"]
    return lines
