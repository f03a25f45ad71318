"""`forty2 sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.errors import Group
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars

if TYPE_CHECKING:
    from forty2.runs.sweep.results import SweepResult


class _SweepGroup(Group):
    """A group whose first argument may be a recipe: `forty2 sweep RECIPE` runs it."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, "run")

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            args = ["run", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # Options may come before the recipe.
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("sweep", cls=_SweepGroup)
def sweep_command() -> None:
    """Try the settings of a grid, each with several seeds.

    \b
    forty2 sweep RECIPE --grid sweep.yaml --seeds 42,43,44
    forty2 sweep show SWEEP
    forty2 sweep confirm SWEEP --seeds 45,46,47

    RECIPE is as `forty2 run` takes it; `run` may be left out.
    """


@sweep_command.command("run")
@shared_options.runs_model
@click.argument("recipe")
@shared_options.model_option(help="Model folder, hub name, or smollm2. Default: the recipe's.")
@shared_options.set_option
@click.option(
    "--grid",
    type=shared_options.FILE,
    help="YAML file of the keys to try. Default: the one beside the recipe, NAME.sweep.yaml.",
)
@shared_options.seeds_option(
    help="Two or more seeds, separated by commas. Default: 42,43,44, or those of the sweep to resume."
)
@shared_options.out_option(help="Folder to write. Default: adapters/NAME-sweep.")
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with a sweep that stopped, add seeds, or take part in one that is running.",
)
@click.option(
    "--early-stop",
    is_flag=True,
    help="Give no more seeds to a configuration below the median of the finished ones.",
)
@shared_options.as_json
@shared_options.trust_remote_code
def run_command(
    recipe: str,
    model: str | None,
    overrides: tuple[str, ...],
    grid: Path | None,
    seeds: list[int] | None,
    out: Path | None,
    resume: bool,
    early_stop: bool,
    as_json: bool,
    trust_remote_code: bool,
) -> None:
    """Train every configuration with every seed; measure and compare."""
    from forty2.recipe.differences import on_one_line
    from forty2.runs.sweep.running import sweep

    given = [f"model={on_one_line(model)}"] if model is not None else []
    with ProgressBars() as bars:
        result = sweep(
            recipe,
            grid,
            seeds,
            overrides=[*overrides, *given],
            out=out,
            resume=resume,
            early_stop=early_stop,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    _echo(result, as_json)


@sweep_command.command("show")
@click.argument("sweep", type=shared_options.FOLDER)
@shared_options.as_json
def show_command(sweep: Path, as_json: bool) -> None:
    """Show the results of a sweep so far."""
    from forty2.runs.sweep.results import show_sweep

    result = show_sweep(sweep)
    _echo(result, as_json)


@sweep_command.command("confirm")
@shared_options.runs_model
@click.argument("sweep", type=shared_options.FOLDER)
@shared_options.seeds_option(required=True)
@shared_options.as_json
@shared_options.trust_remote_code
def confirm_command(sweep: Path, seeds: list[int], as_json: bool, trust_remote_code: bool) -> None:
    """Train the best configuration again, and the unchanged recipe, both with new seeds.

    A confirmation that was stopped is continued.
    """
    from forty2.runs.sweep.confirming import confirm

    with ProgressBars() as bars:
        result = confirm(sweep, seeds, trust_remote_code=trust_remote_code, progress=bars)
    _echo(result, as_json)


def _echo(result: SweepResult, as_json: bool) -> None:
    if as_json:
        echo_json("sweep", result.record)
        return
    from forty2.report.sweep import confirmation_lines

    echo(f"\n{result.table}\n")
    if result.left:
        echo("other processes may be at work on what is not finished\n")
    echo(result.sentence)
    for line in confirmation_lines(result.record):
        echo(line)
    echo(f"\nreport    {result.report}")
