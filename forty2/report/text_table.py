"""Tables of plain text, for terminals."""

from __future__ import annotations

from collections.abc import Sequence


def text_table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align a table: the first column to the left, the others to the right, a rule below the head.

    Args:
        rows: the head and at least one row, all of the same length.
    """
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    head, *lines = (
        f"{row[0]:<{first}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], others, strict=True))
        for row in rows
    )
    return [head, "-" * len(head), *lines]
