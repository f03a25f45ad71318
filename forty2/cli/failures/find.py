"""`forty2 failures find`."""

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
    from forty2.model.chat_template import TemplateSettings


@click.command("find")
@click.argument("folder", type=shared_options.FOLDER)
@shared_options.model_and_adapter()
@chat_model("judge")
@click.option(
    "--at-least",
    default=7.0,
    show_default=True,
    type=click.FloatRange(1, 10),
    help="Smallest mean score of the judge, of 10, that passes.",
)
@click.option(
    "--repeats",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Number of times that the judge scores a reply.",
)
@click.option(
    "--max-tokens",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="Longest reply in tokens.",
)
@click.option(
    "--batch-size",
    default=16,
    show_default=True,
    type=click.IntRange(1),
    help="Number of replies generated at a time.",
)
@click.option(
    "--run-untrusted-code",
    is_flag=True,
    help="Allow running the programs that the model writes, in a sandbox. Required for unit tests.",
)
@shared_options.as_json
@shared_options.template
@shared_options.trust_remote_code
def find_command(
    folder: Path,
    model: str,
    adapter: str | None,
    judge: ChatModel | None,
    limits: Limits,
    at_least: float,
    repeats: int,
    max_tokens: int,
    batch_size: int,
    run_untrusted_code: bool,
    as_json: bool,
    template: TemplateSettings | None,
    trust_remote_code: bool,
) -> None:
    """Answer the questions of a test set, and decide on each reply.

    Only the half that is to be looked at is answered. The same command goes on after a stop.
    """
    from forty2.benchmark import sandbox
    from forty2.failures.find import FindSettings, find_failures, format_found
    from forty2.failures.judging import Scoring

    if run_untrusted_code and (gaps := sandbox.gaps()):
        warn(f"the sandbox cannot ensure here that {'; '.join(gaps)}")
    settings = FindSettings(
        max_tokens=max_tokens,
        batch_size=batch_size,
        run_untrusted_code=run_untrusted_code,
        scoring=Scoring(at_least=at_least, repeats=repeats),
        limits=limits,
    )
    with ProgressBars() as bars:
        found = find_failures(
            folder,
            model,
            adapter,
            judge=judge,
            settings=settings,
            template=template,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    if as_json:
        echo_json("failures.find", {**found.record, "judged": found.record.get("judged")})
        return
    echo(format_found(found.record))
    if found.seconds:
        echo(
            f"{found.tokens:,} tokens generated in {found.seconds:,.1f} s, "
            f"{found.tokens / found.seconds:,.0f} a second"
        )
