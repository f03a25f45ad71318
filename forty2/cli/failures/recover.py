"""`forty2 failures recover`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import warn
from forty2.cli.failures.chat_options import limits_of_requests
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from forty2.failures.asking import Limits


@click.command("recover")
@shared_options.runs_model
@click.argument("folder", type=shared_options.FOLDER)
@click.option(
    "--recipe",
    "-r",
    required=True,
    help="Recipe of one SFT phase, without its data: a file, a folder, or a packaged recipe's name.",
)
@shared_options.set_option
@shared_options.seeds_option(default="42,43,44")
@click.option(
    "--original",
    metavar="FILE|RUN",
    help="Data that the model was trained on before, of which a tenth of each arm's tokens is. Default: that "
    "of the run whose adapter the failures are of.",
)
@click.option("--api-key-env", help="Environment variable that holds the key of the judge.")
@limits_of_requests()
@click.option(
    "--run-untrusted-code",
    is_flag=True,
    help="Allow running the programs that the models write, in a sandbox. Required for unit tests.",
)
@click.option("--resume", is_flag=True, help="Only go on with what has begun; begin nothing.")
@shared_options.as_json
@shared_options.trust_remote_code
def recover_command(
    folder: Path,
    recipe: str,
    overrides: tuple[str, ...],
    seeds: list[int],
    original: str | None,
    api_key_env: str | None,
    limits: Limits,
    run_untrusted_code: bool,
    resume: bool,
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """Train on targeted and on random rows, test both and the model as it was on the untouched half.

    The accepted rows of both arms get the same recipe, seeds, original rows and number of tokens. The same
    command goes on after a stop, and may then have more seeds.
    """
    from forty2.failures.recover import (
        RECOVERED,
        RecoverSettings,
        recorded_judge,
        recover_failures,
    )
    from forty2.failures.recovery_record import format_recovery

    settings = RecoverSettings(
        seeds=seeds,
        original=original,
        run_untrusted_code=run_untrusted_code,
        trust_remote_code=trust_remote_code,
        limits=limits,
    )
    with ProgressBars() as bars:
        record = recover_failures(
            folder,
            recipe,
            settings=settings,
            overrides=overrides,
            judge=recorded_judge(folder, api_key_env),
            resume=resume,
            progress=bars,
        )
    for message in record["warnings"]:
        warn(message)
    if as_json:
        echo_json("failures.recover", record)
        return
    echo(format_recovery(record))
    echo(f"written   {folder / RECOVERED}")
