"""`forty2 ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from forty2.recipe.schema import Recipe


@click.command("ablate")
@shared_options.runs_model
@shared_options.recipe
@shared_options.seeds_option(default="1,2,3")
@click.option(
    "--dose",
    "doses",
    callback=shared_options.whole_numbers,
    help="Steps of the first SFT phase, separated by commas, e.g. 0,40,100,200: measure each number of "
    "them, without and with the first preference phase after it, in place of the phases.",
)
@shared_options.out_option(
    help="Folder to write. Default: adapters/NAME-ablation, with --dose adapters/NAME-doses."
)
@click.option("--resume", is_flag=True, help="Go on with an ablation that stopped, or add seeds.")
@shared_options.as_json
@shared_options.trust_remote_code
def ablate_command(
    recipe: Recipe,
    seeds: list[int],
    doses: list[int] | None,
    out: Path | None,
    resume: bool,
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """Measure what each phase of a recipe gains and costs.

    Trains and measures for each of several seeds: the base, each phase after the phases before it,
    and the first preference phase on its own. Each is judged by benefit and cost, as a run is.

    With --dose: from which number of SFT steps on the model leaks or loses what it could do, and
    whether the preference phase brings it back.
    """
    from forty2.runs.ablation import ablate

    with ProgressBars() as bars:
        ablation = ablate(
            recipe,
            seeds,
            doses=doses,
            out=out,
            resume=resume,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    if as_json:
        echo_json("ablate", ablation.record)
        return
    for note in ablation.record["notes"]:
        echo(note)
    echo(f"\n{ablation.table}\n")
    for line in ablation.verdicts:
        echo(line)
    echo()
    if ablation.sentence:
        echo(f"{ablation.sentence}\n")
    echo(f"report    {ablation.report}")
