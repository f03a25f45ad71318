"""`forty2 plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options

if TYPE_CHECKING:
    from forty2.recipe.schema import Recipe


@click.command("plan")
@shared_options.recipe
@shared_options.trust_remote_code
def plan_command(recipe: Recipe, trust_remote_code: bool) -> None:
    """Work out steps, epochs and memory without training.

    Reads and tokenizes the data. The model's weights are not read.
    """
    from forty2.runs.planning import format_plan, plan

    click.echo(format_plan(plan(recipe, trust_remote_code=trust_remote_code)))
