"""Runs in a table: what a reader sees of each, in words and units."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from forty2.report.json_records import visible
from forty2.report.units import file_size
from forty2.run_paths import HOME
from forty2.text_layout import width_of

if TYPE_CHECKING:
    from forty2.runs.archive.entry import Entry

COLUMNS = ("run", "state", "age", "model", "phases", "size", "result", "verdict", "tags")
_HEADLINES: tuple[tuple[str, str], ...] = (
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
_SPAN = ((60, "s"), (60, "min"), (24, "h"), (365, "d"))


def table(entries: Sequence[Entry]) -> str:
    """Format runs, one a line, with every column that has an entry."""
    rows = [cells(entry) for entry in entries]
    shown = [name for name in COLUMNS if any(row[name] for row in rows)]
    return ruled([shown, *([row[name] for name in shown] for row in rows)])


def metric_key(name: str) -> str:
    """Return the form of a metric's name in which names are compared."""
    key = name.strip().casefold().replace(" ", "_").replace("-", "_")
    return {"pair_accuracy": "valid_accuracy", "age": "started"}.get(key, key)


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
    path, here = Path(entry.path), Path.cwd()
    for folder in (here / HOME, here):
        if path.is_relative_to(folder) and path != folder:
            path = path.relative_to(folder)
            break
    return str(visible(str(path)))


def result(entry: Entry, metric: str | None = None) -> str:
    """Format one figure of a run, with the base model's if that was measured."""
    own = {metric_key(name): value for name, value in entry.metrics.items()}
    base = {metric_key(name): value for name, value in entry.base_metrics.items()}
    names = _HEADLINES
    if metric:
        recorded = next((name for name in entry.metrics if metric_key(name) == metric), metric)
        names = ((metric, dict(_HEADLINES).get(metric, recorded)),)
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


def ruled(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells in columns, with a rule below the head, the first of them."""
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(text + " " * (w - width_of(text)) for text, w in zip(row, widths, strict=True))
        for row in rows
    ]
    lines = [line.rstrip() for line in lines]
    return "\n".join([lines[0], "-" * max(map(width_of, lines)), *lines[1:]])
