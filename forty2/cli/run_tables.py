"""Tables of runs that fit the terminal, and their units in words."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forty2.runs.archive.entry import Entry

COLUMNS = ("run", "state", "age", "model", "phases", "size", "result", "verdict", "tags")
_FIRST = ("run", "state", "result", "age", "size", "verdict", "phases", "tags", "model")
"""Columns in the order in which a narrow terminal keeps them."""
_HEADLINES = (
    ("pair_accuracy", "pair accuracy"),
    ("mc1", "MC1"),
    ("valid_accuracy", "pair accuracy"),
    ("valid_passed", "passed"),
    ("valid_loss", "valid loss"),
    ("perplexity", "perplexity"),
)
"""Figures that sum a run up, the first that it has, with their names for a reader."""
_LONGEST = 40
"""Characters of a cell in a terminal, other than the run's name."""
_NARROWEST, _MOST_LINES = 24, 12
"""Width of a column of replies, and lines of one."""
_SPAN = ((60, "s"), (60, "min"), (24, "h"), (365, "d"))


def run_table(entries: Sequence[Entry], metric: str | None = None) -> str:
    """Format runs, one a line; columns that do not fit into the terminal are left out.

    Args:
        metric: figure to show as the result; None: the run's headline.
    """
    rows = [cells(entry, metric) for entry in entries]
    shown = [name for name in COLUMNS if any(row[name] for row in rows)]
    width = _terminal_width()
    if width is not None:
        rows = [
            {name: text if name == "run" else _cut(text, _LONGEST) for name, text in row.items()}
            for row in rows
        ]
        for name in reversed(_FIRST[2:]):
            if _total(shown, rows) <= width:
                break
            shown = [one for one in shown if one != name]
        over = _total(shown, rows) - width
        if over > 0:
            longest = max(_width(row["run"]) for row in rows)
            rows = [{**row, "run": _cut(row["run"], max(8, longest - over))} for row in rows]
    widths = {name: max(_width(row[name]) for row in [*rows, _head()]) for name in shown}
    lines = [
        "  ".join(row[name] + " " * (widths[name] - _width(row[name])) for name in shown).rstrip()
        for row in (_head(), *rows)
    ]
    return "\n".join([lines[0], "-" * max(map(_width, lines)), *lines[1:]])


def cells(entry: Entry, metric: str | None = None) -> dict[str, str]:
    """Return the texts of a run's columns."""
    done, phases = entry.finished_phases, " → ".join(entry.phases)
    state = entry.state
    if state in ("stopped", "running", "failed") and entry.phases:
        state += f" {done}/{len(entry.phases)}"
    return {
        "run": shown_name(entry),
        "state": state,
        "age": age(entry.started),
        "model": Path(entry.model).name if os.path.isabs(entry.model) else entry.model,
        "phases": phases,
        "size": size(entry.size),
        "result": result(entry, metric),
        "verdict": " ".join(entry.verdict.split()),
        "tags": ", ".join(entry.tags),
    }


def shown_name(entry: Entry) -> str:
    """Return the name by which the other commands find a run: below adapters/, or its path.

    Characters that would act on the terminal are spelled out.
    """
    from forty2.report.records import visible

    path, here = Path(entry.path), Path.cwd()
    for folder in (here / "adapters", here):
        if path.is_relative_to(folder) and path != folder:
            path = path.relative_to(folder)
            break
    return str(visible(str(path)))


def result(entry: Entry, metric: str | None = None) -> str:
    """Format one figure of a run, with the base model's if that was measured."""
    from forty2.runs.archive.finding import metric_key

    own = {metric_key(name): value for name, value in entry.metrics.items()}
    base = {metric_key(name): value for name, value in entry.base_metrics.items()}
    names = [(metric, metric)] if metric else [(n, label) for n, label in _HEADLINES if n in own]
    for name, label in names:
        if name in own:
            before = f"{figure(base[name])} → " if name in base else ""
            return f"{label} {before}{figure(own[name])}"
    return ""


def figure(value: float) -> str:
    """Format a figure with three decimals, or fewer if it is large."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def size(count: int) -> str:
    """Format a number of bytes."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.1f} GB"


def age(started: str) -> str:
    """Format the time since a moment, e.g. `3 d`; empty if it is not known."""
    if not started:
        return ""
    passed = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds())
    for length, unit in _SPAN:
        if passed < length:
            return f"{passed:.0f} {unit}"
        passed /= length
    return f"{passed:.0f} years"


def side_by_side(texts: Sequence[str], titles: Sequence[str]) -> str:
    """Set texts in columns of equal width, or below each other if columns were too narrow.

    Blank lines are left out, and each text is cut after a dozen lines.
    """
    width = _terminal_width() or 100
    each = (width - 3 * (len(texts) - 1)) // len(texts)
    if each < _NARROWEST:
        parts = [[f"{t}:", *_wrapped(text, width)] for t, text in zip(titles, texts, strict=True)]
        return "\n".join(line for part in parts for line in part)
    columns = [
        [_cut(title, each), *_wrapped(text, each)]
        for title, text in zip(titles, texts, strict=True)
    ]
    lines = []
    for n in range(max(map(len, columns))):
        row = [column[n] if n < len(column) else "" for column in columns]
        lines.append(" | ".join(text + " " * (each - _width(text)) for text in row).rstrip())
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    """Break a text at spaces into lines of at most `width`; wide characters take two columns."""
    import textwrap

    lines = [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, width if _width(line) == len(line) else width // 2)
    ]
    more = ["…"] if len(lines) > _MOST_LINES else []
    return [*lines[:_MOST_LINES], *more] or ["(blank)"]


def _terminal_width() -> int | None:
    """Return the width of the terminal; None: the output goes to a file or another program."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return None
    return shutil.get_terminal_size().columns


def _head() -> dict[str, str]:
    return {name: name for name in COLUMNS}


def _total(names: Sequence[str], rows: Sequence[dict[str, str]]) -> int:
    widths = [max(_width(row[name]) for row in [*rows, _head()]) for name in names]
    return sum(widths) + 2 * (len(names) - 1)


def _width(text: str) -> int:
    """Count the columns that a terminal needs for a text."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _cut(text: str, width: int) -> str:
    """Shorten a text to a width; the end is replaced by an ellipsis."""
    if _width(text) <= width:
        return text
    while text and _width(text) > width - 1:
        text = text[:-1]
    return f"{text}…"
