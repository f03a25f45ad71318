"""`forty2 report`."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.cli.echo import echo


@click.command("report")
@click.argument("run_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report_command(run_dir: Path) -> None:
    """Write the report of a run again, from the files in its folder."""
    from forty2.report.run import write_report

    echo(write_report(run_dir))
