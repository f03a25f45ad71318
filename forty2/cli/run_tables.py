"""Tables of runs and of their settings that fit the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from forty2.cli.columns import cut
from forty2.runs.archive.listing import COLUMNS, cells, ruled
from forty2.text_layout import terminal_width, width_of

if TYPE_CHECKING:
    from forty2.runs.archive.differing_settings import Setting
    from forty2.runs.archive.entry import Entry

_FIRST = ("run", "verdict", "state", "result", "age", "tags", "phases", "model", "size")
"""Columns in the order in which a narrow terminal keeps them."""
_LONGEST = 40
"""Characters of a cell in a terminal, other than the run's name."""
_NARROWEST_SETTING = 12
"""Characters of a setting's value, below which each has a line of its own."""


def run_table(entries: Sequence[Entry], metric: str | None = None) -> str:
    """Format runs, one a line; columns that do not fit into the terminal are left out.

    Args:
        metric: figure to show as the result; None: the run's headline.
    """
    rows = [cells(entry, metric) for entry in entries]
    shown = [name for name in COLUMNS if any(row[name] for row in rows)]
    width = terminal_width(sys.stdout)
    if width is not None:
        rows = [
            {name: text if name == "run" else cut(text, _LONGEST) for name, text in row.items()}
            for row in rows
        ]
        for name in reversed(_FIRST[3:]):
            if _total(shown, rows) <= width:
                break
            shown = [one for one in shown if one != name]
        over = _total(shown, rows) - width
        if over > 0:
            longest = max(width_of(row["run"]) for row in rows)
            rows = [{**row, "run": cut(row["run"], max(8, longest - over))} for row in rows]
    return ruled([[row[name] for name in shown] for row in (_head(), *rows)])


def settings_table(settings: Sequence[Setting], names: Sequence[str]) -> str:
    """Format settings, one a line with a column for each run; long values are cut.

    Where the terminal is too narrow for that, each value has a line of its own.
    """
    title = "settings that differ"
    width, each = terminal_width(sys.stdout), _LONGEST
    if width is not None:
        first = max(map(width_of, [title, *(one.key for one in settings)]))
        each = min(each, (width - first) // len(names) - 2)
    cells = [[cut(value, each) for value in one.values] for one in settings]
    told_apart = all(
        len({*row}) == len({*one.values}) for row, one in zip(cells, settings, strict=True)
    )
    if each < _NARROWEST_SETTING or not told_apart:
        lines = [f"{title}:"]
        for one in settings:
            pairs = zip(names, one.values, strict=True)
            lines += [one.key, *(f"  {n:<{max(map(len, names))}}  {value}" for n, value in pairs)]
        return "\n".join(lines)
    heads = [cut(name, each) for name in names]
    return ruled(
        [[title, *heads], *([one.key, *row] for one, row in zip(settings, cells, strict=True))]
    )


def _head() -> dict[str, str]:
    return {name: name for name in COLUMNS}


def _total(names: Sequence[str], rows: Sequence[dict[str, str]]) -> int:
    widths = [max(width_of(row[name]) for row in [*rows, _head()]) for name in names]
    return sum(widths) + 2 * (len(names) - 1)
