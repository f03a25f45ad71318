"""`forty2 plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.flags import with_flags
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from forty2.recipe.schema import Recipe


@click.command("plan")
@shared_options.runs_model
@shared_options.recipe
@shared_options.run_dir
@click.option("--quick", is_flag=True, help="Do not measure the time.")
@shared_options.as_json
@shared_options.trust_remote_code
def plan_command(
    recipe: Recipe, run_dir: Path | None, quick: bool, as_json: bool, trust_remote_code: bool
) -> None:
    """Work out steps, memory, disk and time without training.

    Reads and tokenizes the data, and times a few batches with the real model. With --quick, the
    model's weights are not read.
    """
    from forty2.runs.planning import format_plan, plan

    with ProgressBars() as bars:
        forecast = plan(
            recipe,
            run_dir=run_dir,
            quick=quick,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    if as_json:
        content = forecast._asdict()
        timed = content.pop("time")
        echo_json("plan", {**content, "seconds": None if timed is None else timed.seconds})
    else:
        echo(with_flags(format_plan(forecast)))
