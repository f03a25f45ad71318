"""The time that each stage of a run took, and the peak of memory where it is known."""

from __future__ import annotations

from collections.abc import Collection

from forty2.report.markdown import Table
from forty2.report.run_types import Run
from forty2.report.units import duration

NOTE = (
    "Time at work, over all starts of the run: pauses are not in it, work that was done twice is. Peak "
    "memory is known of training alone."
)


def time_table(run: Run) -> Table:
    """Make the table of a run's stages; no rows if an earlier release recorded no times."""
    rows = [(time.stage, duration(time.seconds), _memory(run, {time.phase})) for time in run.times]
    if rows:
        total = sum(time.seconds for time in run.times)
        rows.append(("in all", duration(total), _memory(run, {line.phase for line in run.log})))
    return Table(("Stage", "Time", "Peak memory"), rows)


def _memory(run: Run, phases: Collection[str | None]) -> str:
    """Format the peak memory of the steps of some phases."""
    peaks = [
        line.values["peak_memory_gb"]
        for line in run.log
        if line.phase in phases and "peak_memory_gb" in line.values
    ]
    return f"{max(peaks):.2g} GB" if peaks else "–"
