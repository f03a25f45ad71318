"""Markdown in which no text from a run can act as markup, a link or HTML."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

Quote = Callable[[str], str]
"""Function that makes text from a run safe in one kind of report: `escape` in Markdown, `str` in a
page, whose template escapes."""
_PLAIN = re.compile(r"(?:[\w ()+–%-]|(?<=\d)[.,:](?=\d)|[,:](?= ))*")
"""Text without markup: words, and figures such as +1,234.5 or 12.5%. Links need other characters,
or these before a letter."""

PIPE = r"\|"
"""A `|` in a cell: without the backslash, even one in a code span would end the cell."""


class Table(NamedTuple):
    """A table of texts that are not escaped yet."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def escape(text: str) -> str:
    """Return text for one line of Markdown: a code span if anything in it could be markup."""
    text = " ".join(text.split())
    if _PLAIN.fullmatch(text):
        return text
    fence = _fence(text, 1)
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def table_lines(table: Table) -> list[str]:
    """Return the lines of a table, every cell escaped."""
    rows = [table.head, ["---"] * len(table.head), *table.rows]
    return [_row(row if n == 1 else [escape(cell) for cell in row]) for n, row in enumerate(rows)]


def code_lines(text: str, language: str) -> list[str]:
    """Return the lines of a code block that no line of the text can end."""
    fence = _fence(text, 3)
    return [f"{fence}{language}", text.rstrip(), fence]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', PIPE) for cell in cells)} |"


def _fence(text: str, shortest: int) -> str:
    """Return more backticks than the text has anywhere in a row, and at least `shortest`."""
    return "`" * max(shortest, *(len(run) + 1 for run in re.findall("`+", text)), 0)
