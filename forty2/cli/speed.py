"""`forty2 speed`, formerly `bench`."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.cli import shared_options
from forty2.cli.progress_bars import ProgressBars
from forty2.speed.comparison import NAMES, bench
from forty2.speed.environments import PEERS


@click.command("speed")
@click.option(
    "--suite",
    "-s",
    "suites",
    multiple=True,
    type=click.Choice(NAMES),
    help="What to measure. Repeatable. Default: all.",
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
    help="Rows of a suite, a multiple of 4; for TruthfulQA its questions.",
)
@click.option(
    "--rounds",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Measurements of each trainer; their median counts.",
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

    Each trainer is installed into an environment of its own when it is first measured.
    """
    with ProgressBars() as bars:
        bench(
            suites or NAMES,
            peers=[peer for peer in peers or PEERS if peer != "none"],
            rows=rows,
            rounds=rounds,
            model=model,
            out=out,
            say=click.echo,
            progress=bars,
        )
