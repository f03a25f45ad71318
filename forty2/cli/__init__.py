"""The command line: thin files that call the package and print. Commands load when first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import click

from forty2.errors import Forty2Error

COMMANDS = {
    "demo": "run",
    "run": "run",
    "train": "run",
    "plan": "run",
    "report": "run",
    "recipe": "recipe",
    "data": "data",
    "fuse": "model",
    "generate": "model",
    "model": "model",
    "logprobs": "model",
    "benchmark": "benchmark",
    "compare": "benchmark",
}
HELP = {
    "demo": "The whole job on the starter model: data, three phases, fuse, benchmark, report.",
    "run": "Run a recipe: its phases in order, fusing, measuring, reporting.",
    "train": "Run one phase of a recipe.",
    "plan": "What a recipe would do: steps, exposures, memory. Runs nothing.",
    "report": "Write a run's report again.",
    "recipe": "List, show, copy and check recipes.",
    "data": "Build and look at training data.",
    "fuse": "Merge an adapter into its base, checked.",
    "generate": "Answer a prompt.",
    "model": "Fetch, import and describe models.",
    "logprobs": "Log-probabilities of both responses of preference pairs.",
    "benchmark": "Measure a model.",
    "compare": "Paired statistics and a verdict on two results.",
}


class _Lazy(click.Group):
    """Imports a command's file when the command runs, so that --help imports nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"forty2.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, HELP[name]) for name in COMMANDS])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Forty2Error as error:
            raise _Refused(str(error)) from error


class _Refused(click.ClickException):
    """An error of ours at the command line: one message, exit code 2, no traceback."""

    exit_code = 2


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="forty2", prog_name="forty2")
def main() -> None:
    """Align a language model on your own laptop, and believe the result.

    \b
    forty2 demo                            everything, on the starter model
    forty2 run forty2-spark --model M      the published recipe on a model of yours
    forty2 benchmark truthfulqa --model M  TruthfulQA, item by item
    """


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several click options as one decorator."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply
