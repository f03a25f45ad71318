"""A page of all runs, which can be sorted by any column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from forty2.errors import RunError
from forty2.files import write_text
from forty2.report.page import render

_MARK = '<meta name="generator" content="forty2 runs page">'


class Cell(NamedTuple):
    """One figure or text of a run."""

    text: str
    sort: float | str | None = None
    """Value to sort by; None: the text."""


class Row(NamedTuple):
    """One run."""

    name: str
    link: str | None
    """Address of its report as seen from the page; None: it has none."""
    cells: Sequence[Cell]


def write_archive_page(out: Path, about: str, head: Sequence[str], rows: Sequence[Row]) -> Path:
    """Write a page with a table of runs.

    Args:
        about: sentence below the heading.
        head: titles of the columns after the first, which has the run's name.

    Returns:
        The file.

    Raises:
        RunError: the file exists and is not such a page, or cannot be written.
    """
    if out.is_dir():
        raise RunError(f"{out}: is a folder; name the file to write")
    if out.exists() and _MARK not in out.read_text("utf-8", "replace"):
        raise RunError(f"{out}: exists and is not a page of runs; name another `out`")
    write_text(out, render("archive.html.jinja", about=about, head=head, rows=rows))
    return out
