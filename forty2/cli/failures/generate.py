"""`forty2 failures generate` and `score`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import warn
from forty2.cli.failures.chat_options import chat_model
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from forty2.failures.asking import Limits
    from forty2.failures.chat_models import ChatModel


@click.command("generate")
@click.argument("folder", type=shared_options.FOLDER)
@chat_model("teacher", builtin=True, required=True)
@click.option(
    "--size",
    required=True,
    type=click.IntRange(1),
    help="Number of rows for the worse clusters, and again as many at random.",
)
@click.option(
    "--temperature",
    default=0.8,
    show_default=True,
    type=click.FloatRange(0),
    help="Sampling temperature of a chat model.",
)
@click.option(
    "--max-tokens",
    default=1024,
    show_default=True,
    type=click.IntRange(1),
    help="Longest reply of a chat model in tokens, with question and answer.",
)
@shared_options.seed_option(help="Seed of all random choices, and of the requests.")
@click.option("--dry-run", is_flag=True, help="Only say what it would cost.")
@shared_options.as_json
def generate_command(
    folder: Path,
    teacher: ChatModel | str,
    limits: Limits,
    size: int,
    temperature: float,
    max_tokens: int,
    seed: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make questions with right replies: for the worse clusters, and as many at random.

    The same command goes on after a stop. If a budget ended, it goes on with a larger one.
    """
    from forty2.failures.examples import GENERATED
    from forty2.failures.generate import TeacherSettings, format_generated, generate

    with ProgressBars() as bars:
        record = generate(
            folder,
            teacher,
            size=size,
            seed=seed,
            settings=TeacherSettings(temperature=temperature, max_tokens=max_tokens),
            limits=limits,
            dry_run=dry_run,
            progress=bars,
        )
    for note in record["notes"]:
        warn(note)
    if as_json:
        echo_json("failures.generate", record)
        return
    echo(format_generated(record))
    if not dry_run:
        echo(f"written   {folder / GENERATED}")


@click.command("score")
@click.argument("folder", type=shared_options.FOLDER)
@chat_model("judge")
@click.option(
    "--at-least",
    default=8.0,
    show_default=True,
    type=click.FloatRange(1, 10),
    help="Smallest mean score of the judge, of 10, that is accepted.",
)
@click.option(
    "--repeats",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Number of times that the judge scores a row.",
)
@click.option(
    "--run-untrusted-code",
    is_flag=True,
    help="Allow running the programs of the replies, in a sandbox. Required for unit tests.",
)
@shared_options.seed_option(help="Seed of the requests.")
@shared_options.as_json
def score_command(
    folder: Path,
    judge: ChatModel | None,
    limits: Limits,
    at_least: float,
    repeats: int,
    run_untrusted_code: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Accept the generated rows whose replies pass their verifiers, or please a judge.

    The same command goes on after a stop.
    """
    from forty2.benchmark import sandbox
    from forty2.failures.examples import ACCEPTED
    from forty2.failures.score import format_accepted, score

    if run_untrusted_code and (gaps := sandbox.gaps()):
        warn(f"the sandbox cannot ensure here that {'; '.join(gaps)}")
    with ProgressBars() as bars:
        record = score(
            folder,
            judge,
            at_least=at_least,
            repeats=repeats,
            run_untrusted_code=run_untrusted_code,
            seed=seed,
            limits=limits,
            progress=bars,
        )
    if as_json:
        echo_json("failures.score", record)
        return
    echo(format_accepted(record))
    echo(f"written   {folder / ACCEPTED}")
