"""`forty2 bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from forty2.cli.benchmark import _check_out
from forty2.cli.progress_bars import Bars
from forty2.speed.comparison import SUITE_NAMES, compare_trainers
from forty2.speed.environments import PEERS


@click.command("bench")
@click.option(
    "--suite",
    "-s",
    "suites",
    multiple=True,
    type=click.Choice(SUITE_NAMES),
    help="What to measure; again for more. Absent: all.",
)
@click.option(
    "--peer",
    "-p",
    "peers",
    multiple=True,
    type=click.Choice([*PEERS, "none"]),
    help="Whom to measure beside ours; again for more. Absent: all.",
)
@click.option(
    "--rows",
    default=32,
    show_default=True,
    type=click.IntRange(4),
    help="Of a suite, a multiple of 4; questions of TruthfulQA.",
)
@click.option(
    "--rounds",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Measurements of each, whose median counts.",
)
@click.option(
    "--model",
    "-m",
    default="smollm2",
    show_default=True,
    help="Model folder, hub name, or smollm2.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    callback=_check_out,
    help="JSON to write, with every sample.",
)
def bench_command(suites: tuple[str, ...], peers: tuple[str, ...], **arguments: Any) -> None:
    """Time and memory of ours beside other trainers, on this machine, in turn.

    Each is downloaded into an environment of its own when it is first measured.
    """
    with _BarsAndTables() as progress:
        compare_trainers(
            suites or SUITE_NAMES,
            peers=[peer for peer in peers or PEERS if peer != "none"],
            progress=progress,
            **arguments,
        )


class _BarsAndTables(Bars):
    """Progress bars, and the table of each suite on standard output when it is measured."""

    def __call__(self, stage: str, done: int, total: int, info: Mapping[str, str | float]) -> None:
        if "table" in info:
            self.close()
            click.echo(info["table"])
        else:
            super().__call__(stage, done, total, info)
