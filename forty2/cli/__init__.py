"""The command line: thin files that call the package and print. A command loads when first used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

import click

from forty2.cli.lazy_group import LazyGroup

COMMANDS = {
    "demo": "run",
    "init": "init",
    "run": "run",
    "train": "run",
    "ablate": "ablate",
    "sweep": "sweep",
    "plan": "plan",
    "report": "report",
    "runs": "runs",
    "clean": "clean",
    "recipe": "recipe",
    "data": "data",
    "fuse": "fuse",
    "export": "export",
    "push": "hub",
    "pull": "hub",
    "chat": "chat",
    "serve": "serve",
    "generate": "generate",
    "model": "model",
    "logprobs": "logprobs",
    "benchmark": "benchmark",
    "compare": "benchmark",
    "failures": "failures",
    "speed": "speed",
    "completion": "completion",
}
"""The module of each command, in the order of --help."""


class _Commands(LazyGroup):
    modules = COMMANDS
    aliases: ClassVar[Mapping[str, str]] = {"bench": "speed"}


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forty2", prog_name="forty2")
def main() -> None:
    """Align a language model on your own laptop, and believe the result.

    \b
    forty2 demo                    all of it, on a small model
    forty2 init shop --chats FILE  a recipe from your files
    forty2 run shop                train and measure
    forty2 chat shop               talk to the model
    forty2 runs                    find your runs again
    """
    if os.environ.get("NO_COLOR"):
        click.get_current_context().color = False
