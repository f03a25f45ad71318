"""`forty2 speed`, formerly `forty2 bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.progress_bars import ProgressBars
from forty2.speed.comparison import SUITE_NAMES, compare_trainers
from forty2.speed.environments import PEERS


@click.command("speed")
@shared_options.runs_model
@click.option(
    "--suite",
    "-s",
    "suites",
    multiple=True,
    type=click.Choice(SUITE_NAMES),
    metavar="SUITE",
    help=f"Suite to measure: {', '.join(SUITE_NAMES)}. Repeatable. Default: all.",
)
@click.option(
    "--peer",
    "-p",
    "peers",
    multiple=True,
    type=click.Choice([*PEERS, "none"]),
    help="Trainer to compare with. Repeatable. Default: all.",
)
@click.option(
    "--rows",
    default=32,
    show_default=True,
    type=click.IntRange(4),
    help="Number of rows in a suite, a multiple of 4; for TruthfulQA, of questions.",
)
@click.option(
    "--rounds",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Number of measurements of each trainer, of which the median is reported.",
)
@shared_options.model_option(
    default="smollm2", show_default=True, help="Model folder, hub name, or smollm2."
)
@shared_options.json_out(help="JSON file to write, with every sample.")
def speed_command(
    suites: tuple[str, ...],
    peers: tuple[str, ...],
    rows: int,
    rounds: int,
    model: str,
    out: Path | None,
) -> None:
    """Compare time and memory with other trainers.

    Each trainer is installed into its own environment when it is first measured.
    """
    with _BarsAndTables() as progress:
        compare_trainers(
            suites or SUITE_NAMES,
            peers=[peer for peer in peers or PEERS if peer != "none"],
            rows=rows,
            rounds=rounds,
            model=model,
            out=out,
            progress=progress,
        )


class _BarsAndTables(ProgressBars):
    """Progress bars, and the table of each suite on standard output as soon as it is measured."""

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if "table" in info:
            self.close()
            echo(info["table"])
        else:
            super().__call__(stage, done, total, info)
