"""`forty2 data`: build, look at, check and combine training data."""

from __future__ import annotations

import click

from forty2.cli.data import building, changing, looking
from forty2.cli.errors import Group


@click.group("data", cls=Group)
def data_command() -> None:
    """Build, look at, check and combine training data."""


for _command in (
    building.build_command,
    building.format_lock_command,
    building.echo_command,
    building.operators_command,
    looking.show_command,
    looking.stats_command,
    looking.lint_command,
    changing.mix_command,
    changing.stratify_command,
    changing.split_command,
    changing.prepare_command,
    changing.convert_command,
    changing.decontaminate_command,
):
    data_command.add_command(_command)
