"""`forty2 report`."""

from __future__ import annotations

import click

from forty2.cli.echo import echo
from forty2.run_paths import run_folder


@click.command("report")
@click.argument("run", metavar="RUN")
def report_command(run: str) -> None:
    """Write the report of a run again, from the files in its folder."""
    from forty2.report.run import write_report

    echo(write_report(run_folder(run)))
