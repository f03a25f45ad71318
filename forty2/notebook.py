"""Results as a notebook shows them: HTML in which no text of a run acts as markup."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

_FIGURE = re.compile(r"[-+±<]?[ \d.]|$")
"""Beginning of a figure, or no text at all."""


def html_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a titled table, every text escaped; columns of figures are aligned on the right."""
    columns = zip(*rows, strict=True)
    sides = ["right" if all(map(_FIGURE.match, column)) else "left" for column in columns]
    sides = sides or ["left"] * len(head)
    return "\n".join(
        [
            "<table>",
            f'<caption style="text-align:left">{html.escape(title)}</caption>',
            f"<thead>{_row('th', head, sides)}</thead>",
            "<tbody>",
            *(_row("td", row, sides) for row in rows),
            "</tbody>",
            "</table>",
        ]
    )


def html_paragraph(text: str) -> str:
    """Format a paragraph, escaped."""
    return f"<p>{html.escape(text)}</p>"


def _row(tag: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    written = [
        f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
        for side, cell in zip(sides, cells, strict=True)
    ]
    return f"<tr>{''.join(written)}</tr>"
