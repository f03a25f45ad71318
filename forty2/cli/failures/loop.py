"""`forty2 failures run`."""

from __future__ import annotations

from pathlib import Path

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import warn
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars


@click.command("run")
@shared_options.runs_model
@click.argument("loop")
@shared_options.out_option(help="Folder to write. Default: the file's, or failures/NAME.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the file, e.g. generate.size=200. Repeatable.",
)
@click.option("--resume", is_flag=True, help="Only go on with what has begun; begin nothing.")
@shared_options.as_json
@shared_options.trust_remote_code
def run_command(
    loop: str,
    out: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """Do the whole loop from one file: test set, failures, clusters, labels, new rows, arms, report.

    LOOP is a YAML file, or builtin-loop, which comes with the package. Steps that are done are not done
    again, and the same command goes on after a stop.
    """
    from forty2.failures.loop import run_loop
    from forty2.failures.recover import RECOVERED
    from forty2.failures.recovery_record import format_recovery
    from forty2.files import read_json

    with ProgressBars() as bars:

        def started(step: str, what: str) -> None:
            if not as_json:
                bars(step, 0, 1, {"heading": step if what == "now" else f"{step}: kept"})

        ended = run_loop(
            loop,
            overrides=overrides,
            out=out,
            resume=resume,
            trust_remote_code=trust_remote_code,
            started=started,
            progress=bars,
        )
    recovered = None
    if ended.steps["recover"] != "left out":
        recovered = read_json(ended.folder / RECOVERED)
        for message in recovered["warnings"]:
            warn(message)
    if as_json:
        record = {**ended._asdict(), "recovered": recovered}
        echo_json("failures.run", record)
        return
    kept = [step for step, what in ended.steps.items() if what == "kept"]
    if kept:
        echo(f"kept from before: {', '.join(kept)}")
    echo(ended.sentence if recovered is None else format_recovery(recovered))
    echo(f"report    {ended.report}")
