"""Text laid out for a terminal: sentences break at words, and tables fit.

What is too wide is recognised by its form. A table is a head, a rule of dashes, and rows up to an empty
line, with two spaces or more between columns, or one of Markdown. In any other line, the text after the
last such gap is taken to stand in a column of its own, and goes on below itself. Words, numbers and
paths are never cut.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TextIO

_RULE = re.compile(r"-{8,}|\|( ?:?-+:? ?\|)+")
_GAP = re.compile(r"(?<=\S)\s{2,}(?=\S)")
_WORDS = re.compile(r"[^\W\d_]+ [^\W\d_]+")
_PART = re.compile(r" *\n| *[^ \n]+| +$")
_FARTHEST = 0.6
"""Share of the width up to which a text may begin and go on below itself."""
_NARROWEST = 16
"""Width of a last column of words, below which a table becomes a block a row."""
_COLUMNS = 80
"""Width of a terminal that does not say its own."""


def may_colour(stream: TextIO) -> bool:
    """Return whether a stream shows colours: a terminal, with no `NO_COLOR` (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def terminal_width(stream: TextIO) -> int | None:
    """Return the width of the terminal that a stream writes to; None: it is a file or a pipe.

    `COLUMNS` in the environment says it for any stream.
    """
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    except (OSError, ValueError):
        return _COLUMNS


def width_of(text: str) -> int:
    """Count the columns that a terminal needs for a text."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def fit(text: str, width: int | None) -> str:
    """Lay out a text for a width, with the same words.

    Args:
        width: columns of the terminal; None: there is none, and the text stays as it is.
    """
    if width is None:
        return text
    lines, fitted = text.split("\n"), list[str]()
    while lines:
        end = 1
        if lines[0] and len(lines) > 2 and _RULE.fullmatch(lines[1]):
            end = lines.index("") if "" in lines else len(lines)
        part, lines = lines[:end], lines[end:]
        if max(map(width_of, part)) <= width:
            fitted += part
        else:
            fitted += wrapped(part[0], width) if end == 1 else _Table.read(part).fit(width)
    return "\n".join(fitted)


def wrapped(line: str, width: int) -> list[str]:
    """Break a line at its spaces; what follows stands below its last column, or is indented.

    A path too long for its column is set below the line, by itself.
    """
    begin = len(line) - len(line.lstrip())
    indent = begin + 2
    after = indent if begin else 0
    for gap in _GAP.finditer(line):
        if width_of(line[: gap.end()]) <= _FARTHEST * width:
            begin, after = gap.end(), width_of(line[: gap.end()])
    before, words = line[:begin], line[begin:].split()
    if before.strip() and after + max(map(width_of, words)) > width:
        return [before.rstrip(), *_filled(words, width, " " * indent, " " * indent)]
    return _filled(words, width, before, " " * after)


def _filled(
    words: Sequence[str], width: int, first: str, after: str, between: str = " "
) -> list[str]:
    """Fill lines with words, the first line after `first` and the others after `after`."""
    lines, start = list[str](), first
    for word in words:
        if lines and width_of(lines[-1] + between + word) <= width:
            lines[-1] += between + word
        else:
            lines.append(start + word)
            start = after
    return lines or [first.rstrip()]


class LineBreaker:
    """Breaks the lines of a text that comes in pieces; a word is passed on when it is whole.

    Args:
        width: columns of the terminal; None: there is none, and all is passed on as it comes.
    """

    def __init__(self, width: int | None) -> None:
        self._width = width
        self._column = 0
        self._held = ""
        """Spaces and a word that may not be whole."""

    def feed(self, piece: str) -> str:
        """Take a piece, and return what can be written."""
        if self._width is None:
            return piece
        *whole, self._held = _PART.findall(self._held + piece) or [""]
        return "".join(map(self._placed, whole))

    def end(self) -> str:
        """Return what is left."""
        return self._placed(self._held)

    def _placed(self, part: str) -> str:
        """Return a line break, or spaces and a word, in the next line if they do not fit."""
        word, width = part.lstrip(" "), width_of(part)
        if word.strip() and self._column > 0 and self._column + width > (self._width or math.inf):
            self._column = width_of(word)
            return f"\n{word}"
        self._column = 0 if word == "\n" else self._column + width
        return part


class _Table(NamedTuple):
    """The cells of a table, and which of its columns are aligned to the right."""

    rows: list[list[str]]
    right: list[bool]

    @classmethod
    def read(cls, lines: Sequence[str]) -> _Table:
        """Read the cells of a head, a rule and rows."""
        texts = [line for n, line in enumerate(lines) if n != 1]
        if texts[0].startswith("|"):
            cells = [[cell.strip() for cell in text.strip("|").split("|")] for text in texts]
            return cls(cells, [False] * len(cells[0]))
        spans = list(_columns(texts))
        rows = [[" ".join(text[start:end].split()) for start, end in spans] for text in texts]
        right = [
            n > 0 and all(text[end - 1 : end].strip() for text in texts)
            for n, (_, end) in enumerate(spans)
        ]
        return cls(rows, right)

    def fit(self, width: int) -> list[str]:
        """Set the table as narrow as it has to be: last of all, in a block a row."""
        widths = [max(map(width_of, column)) for column in zip(*self.rows, strict=True)]
        for gap in (2, 1):
            left = width - sum(widths[:-1]) - gap * (len(widths) - 1)
            if widths[-1] <= left:
                return list(self._lines([*widths[:-1], left], gap))
        left = width - sum(widths[:-1]) - 2 * (len(widths) - 1)
        if left >= _NARROWEST and any(_WORDS.search(row[-1]) for row in self.rows):
            return list(self._lines([*widths[:-1], left], 2))
        return [line for row in self.rows[1:] for line in self._block(row, width)]

    def _lines(self, widths: Sequence[int], gap: int) -> Iterator[str]:
        for n, row in enumerate(self.rows):
            before = "".join(
                (cell.rjust if right else cell.ljust)(width - width_of(cell) + len(cell))
                + " " * gap
                for cell, width, right in zip(row[:-1], widths[:-1], self.right[:-1], strict=True)
            )
            last = max(width_of(one[-1]) for one in self.rows) if self.right[-1] else 0
            words = [row[-1].rjust(last)] if self.right[-1] else row[-1].split()
            lines = _filled(words, sum(widths) + gap * (len(widths) - 1), before, " " * len(before))
            yield from map(str.rstrip, lines)
            if n == 0:
                yield "-" * max(map(width_of, lines))

    def _block(self, row: Sequence[str], width: int) -> Iterator[str]:
        """Set a row as its first cell, then the others, each with its head."""
        yield f"{self.rows[0][0]} {row[0]}".strip()
        cells = [
            f"{head} {cell}" for head, cell in zip(self.rows[0][1:], row[1:], strict=True) if cell
        ]
        for line in _filled(cells, width, "  ", "  ", between="   "):
            yield from wrapped(line, width) if width_of(line) > width else [line]


def _columns(lines: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield where each column begins and ends: two spaces or more in all lines are between two."""
    longest = max(map(len, lines))
    blank = "".join(
        " " if all(line[n : n + 1] in ("", " ") for line in lines) else "x" for n in range(longest)
    )
    for found in re.finditer(r"x+(?: x+)*", blank):
        yield found.span()
