"""The lint's warnings about the rows that a run was trained on."""

from __future__ import annotations

from forty2.report.markdown import Table
from forty2.report.run_types import Run

NOTE = (
    "A warning deserves a look and stopped nothing; `forty2 data lint` shows all rows. Rows: those with "
    "the fault, or, for a fault of the whole set, those looked at."
)


def lint_table(run: Run) -> Table:
    """Make the table of the lint's warnings; no rows: there are none, or they were not recorded."""
    return Table(
        ("Phase", "Rows", "Warning", "First rows"),
        [
            (warning.phase, f"{warning.rows:,}", warning.message, ", ".join(warning.origins) or "–")
            for warning in run.lint_warnings
        ],
    )
