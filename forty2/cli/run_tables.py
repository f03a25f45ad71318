"""Tables of runs that fit the terminal, and their units in words."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.cli.columns import cut
from forty2.report.units import file_size
from forty2.run_paths import HOME
from forty2.text_layout import terminal_width, width_of

if TYPE_CHECKING:
    from forty2.runs.archive.entry import Entry

COLUMNS = ("run", "state", "age", "model", "phases", "size", "result", "verdict", "tags")
_FIRST = ("run", "state", "result", "age", "size", "verdict", "phases", "tags", "model")
"""Columns in the order in which a narrow terminal keeps them."""
_HEADLINES = (
    ("pairs_right", "pairs right"),
    ("ratings_right", "ratings right"),
    ("prompts_passed", "passed"),
    ("chat_loss", "chat loss"),
    ("mc1", "MC1"),
    ("valid_accuracy", "pair accuracy"),
    ("valid_passed", "passed"),
    ("valid_loss", "valid loss"),
    ("perplexity", "perplexity"),
)
"""Figures that sum a run up, the first that it has, with their names for a reader."""
_LONGEST = 40
"""Characters of a cell in a terminal, other than the run's name."""
_SPAN = ((60, "s"), (60, "min"), (24, "h"), (365, "d"))


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
        for name in reversed(_FIRST[2:]):
            if _total(shown, rows) <= width:
                break
            shown = [one for one in shown if one != name]
        over = _total(shown, rows) - width
        if over > 0:
            longest = max(width_of(row["run"]) for row in rows)
            rows = [{**row, "run": cut(row["run"], max(8, longest - over))} for row in rows]
    widths = {name: max(width_of(row[name]) for row in [*rows, _head()]) for name in shown}
    lines = [
        "  ".join(row[name] + " " * (widths[name] - width_of(row[name])) for name in shown).rstrip()
        for row in (_head(), *rows)
    ]
    return "\n".join([lines[0], "-" * max(map(width_of, lines)), *lines[1:]])


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
        "size": file_size(entry.size),
        "result": result(entry, metric),
        "verdict": " ".join(entry.verdict.split()),
        "tags": ", ".join(entry.tags),
    }


def shown_name(entry: Entry) -> str:
    """Return the name by which the other commands find a run: below adapters/, or its path.

    Characters that would act on the terminal are spelled out.
    """
    from forty2.report.json_records import visible

    path, here = Path(entry.path), Path.cwd()
    for folder in (here / HOME, here):
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
            unfinished = name.startswith("valid_") and entry.state != "finished"
            return f"{label} {before}{figure(own[name])}{' so far' if unfinished else ''}"
    return ""


def figure(value: float) -> str:
    """Format a figure with three decimals, or fewer if it is large."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


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


def _head() -> dict[str, str]:
    return {name: name for name in COLUMNS}


def _total(names: Sequence[str], rows: Sequence[dict[str, str]]) -> int:
    widths = [max(width_of(row[name]) for row in [*rows, _head()]) for name in names]
    return sum(widths) + 2 * (len(names) - 1)
