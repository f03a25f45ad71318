"""`forty2 failures`: find what a model gets wrong."""

from __future__ import annotations

import click

from forty2.cli.errors import Group
from forty2.cli.failures import cluster, find, generate, loop, recover, testset


@click.group("failures", cls=Group)
def failures_command() -> None:
    """Find what a model gets wrong, and teach it."""


for _command in (
    testset.testset_command,
    find.find_command,
    cluster.cluster_command,
    cluster.label_command,
    generate.generate_command,
    generate.score_command,
    recover.recover_command,
    cluster.report_command,
    loop.run_command,
):
    failures_command.add_command(_command)
